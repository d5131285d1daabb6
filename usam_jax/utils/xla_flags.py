"""Flags of XLA that programs set before JAX starts its devices; needs no JAX."""

import os


def use_fast_convolutions() -> None:
    """Makes XLA on a CPU take Eigen's convolutions, whose kernel gradients are faster than YNNPACK's.

    Known to jax 0.10 and 0.11; XLA ends the process at a flag that it does not know. XLA_FLAGS of
    the user that name the same flag are left alone.
    """
    name = "--xla_cpu_experimental_ynn_fusion_type"
    if f"{name}=" not in os.environ.get("XLA_FLAGS", ""):
        add(f"{name}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION")


def repeat_exactly() -> None:
    """Makes XLA choose operations on GPUs that give the same bits each time."""
    add("--xla_gpu_deterministic_ops=true")


def add(flag: str) -> None:
    """Behind those of the user; XLA takes the last of a name."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
