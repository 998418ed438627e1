"""Shards: files that hold the results of many images each. One file per format, a line in `plugins.py` for each."""
