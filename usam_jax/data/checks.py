"""Checks of `config.data`, made before any time is spent."""

from ml_collections import ConfigDict

from usam_jax.data.augment import make_augment
from usam_jax.data.packed.prepare import packing_settings
from usam_jax.data.splits import check_splitting
from usam_jax.utils.errors import UsageError


def check(data: ConfigDict) -> None:
    """Raise UsageError for a field of `config.data` whose value makes no sense."""
    packing_settings(data)
    check_splitting(data)
    make_augment(data)
    if data.num_workers < 0:
        raise UsageError(f"config.data.num_workers: got {data.num_workers}, expected 0 or more")
