"""Networks as files for other runtimes: every exporter's file is run and compared before it gets its name."""
