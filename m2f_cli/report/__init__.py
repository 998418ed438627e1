"""Reports: results of a run or an evaluation in, one self-contained HTML page out.

A page is a template of `templates/` that extends `base.html`. `page.py` renders and writes it; every value is escaped
there and nowhere else. `charts.py` and `tables.py` turn results into plain values that `parts.html` draws.
"""
