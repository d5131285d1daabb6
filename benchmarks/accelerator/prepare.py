"""Set up a worker that uses JAX: the compilation cache, and the sizes of a dry run."""

import pathlib

import jax
from ml_collections import ConfigDict

from benchmarks import data, epochs, limits, prediction, training
from benchmarks.accelerator.context import STEPS_PER_EPOCH, settings
from configs import care
from usam_jax.models import usam

DRY_VARIANT, DRY_SIZE = "dry", 32
full_config = care.get_config


def prepare_jax() -> None:
    cache = settings().keep / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if settings().dry:
        shrink()


def shrink() -> None:
    """Replace models, data and repetitions by tiny ones, in this process."""
    usam.VARIANTS[DRY_VARIANT] = usam.Variant(48, 2, 2, (1,), window=7, dim=32)
    care.get_config = dry_config
    data.write_slices = dry_slices
    limits.PRODUCT["cpu"], limits.ARRAY_BYTES, limits.LIMIT_S = 256, 1 << 22, 0.02
    training.ROUNDS, epochs.NUM_STEPS["cpu"], prediction.NUM_CLICKS = 2, 4, 3
    epochs.TRAINING_SLICES = 2 * STEPS_PER_EPOCH


def dry_config(model: str = "usam") -> ConfigDict:
    """configs/care.py with a tiny model."""
    config = full_config(model)
    config.model.variant, config.model.image_size = DRY_VARIANT, DRY_SIZE
    return config


def dry_slices(folder: pathlib.Path) -> ConfigDict:
    """Phantoms of the small size.

    Files in CARE's layout have 224 pixels a side.
    """
    config = dry_config()
    config.data.kind, config.data.root, config.data.packed_dir = "phantom", "", str(folder)
    with config.unlocked():
        config.data.anatomy, config.data.phantom_seed = "single", 1
        config.data.num_patients, config.data.slices_per_patient = (2, 1), 8
    return config
