"""XLA flags that programs set before JAX starts its devices.

Imports no JAX.
"""

import os


def use_fast_convolutions() -> None:
    """Make XLA:CPU use Eigen's convolutions: their kernel gradients are faster than YNNPACK's.

    The flag exists in jax 0.10 and 0.11; XLA aborts the process for an unknown flag. If XLA_FLAGS
    sets the same flag, the user's value stays.
    """
    name = "--xla_cpu_experimental_ynn_fusion_type"
    if f"{name}=" not in os.environ.get("XLA_FLAGS", ""):
        add(f"{name}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION")


def repeat_exactly() -> None:
    """Make XLA:GPU choose operations that give bit-identical results in each run."""
    add("--xla_gpu_deterministic_ops=true")


def add(flag: str) -> None:
    """Append a flag to those of the user.

    Of a repeated flag XLA takes the last.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
