"""Streams of images through several processes: those of one machine, of torchrun, or of a Ray cluster."""
