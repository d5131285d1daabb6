"""Flags of XLA that programs set before JAX starts its devices; needs no JAX."""

import os


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
