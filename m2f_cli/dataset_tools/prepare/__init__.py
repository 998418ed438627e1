"""`m2f data prepare`: from a download to what training and evaluation read, as the published scripts make it.

One module per data set holds a `PREPARER`, a line of the group "preparers" in plugins.py: what it must find, and a plan
of what is made of it. `run.prepare` carries a plan out.
"""
