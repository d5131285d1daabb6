"""Layouts of data sets: each module here but `registry` and `spec` defines one as `SPEC`.

A new layout is one file, `NAME.py`; its name is the value of `config.data.kind`.
"""
