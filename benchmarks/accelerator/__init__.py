"""All measurements on one GPU by one command: `python -m benchmarks accelerator`.

`command` and `runner` import the standard library only and start no JAX: the worker processes need
the device's whole memory. docs/how-to/measure-an-accelerator.md describes its use.
"""
