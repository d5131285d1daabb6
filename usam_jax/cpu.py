"""Settings of the process that make JAX on a CPU faster; needs no JAX."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def prepare() -> None:
    """To be called before JAX starts its devices."""
    use_fast_convolutions()
    keep_memory()


def use_fast_convolutions() -> None:
    """Makes XLA on a CPU take Eigen's convolutions, whose kernel gradients are faster than YNNPACK's.

    Known to jax 0.10 and 0.11; XLA ends the process at a flag that it does not know. XLA_FLAGS of
    the user that name the same flag are left alone.
    """
    name = "xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if f"--{name}=" not in flags:
        flag = f"--{name}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def keep_memory() -> None:
    """Makes glibc keep what is freed for the next use.

    A step on a CPU asks for gigabytes and frees them; given back to the system, their pages would
    be cleared anew in each step. Other C libraries are left as they are.
    """
    if hasattr(os, "confstr_names") and "CS_GNU_LIBC_VERSION" in os.confstr_names:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
