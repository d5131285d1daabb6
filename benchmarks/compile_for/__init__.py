"""Programs compiled for a GPU that is not there, read kernel by kernel.

`target` describes the GPUs, `programs` lowers for them, `kernels` reads the compiled text, and
`command` checks it and prints a predicted time for each part of the model.
"""
