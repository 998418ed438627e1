"""Training of a model on annotated images: a visible loop, its parts, checkpoints and logs."""
