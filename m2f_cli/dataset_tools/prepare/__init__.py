"""Preparation of downloaded data sets for training and evaluation, with the results of the published scripts.

One module per data set holds a `PREPARER`, a line of the group "preparers" in plugins.py. It names the files that must
exist, and gives a plan of the files to create. `run.prepare` executes a plan.
"""
