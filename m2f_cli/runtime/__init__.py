"""Facts about this process and machine, and habits that any program needs: files, documents, locks."""
