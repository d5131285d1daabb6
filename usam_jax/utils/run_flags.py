"""Command-line flags that the programs which train share, and lists of integers in flags."""

from absl import flags

from usam_jax.utils.errors import UsageError

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or of the runs of a sweep. Default: runs/NAME or runs/NAME_NETWORK for "
    "configs/NAME.py, runs/ablation and runs/networks for the sweeps.",
)
SEEDS = flags.DEFINE_list(
    "seeds",
    None,
    "0,1,2: one run per seed, then their mean and standard deviation. The sweeps' default is 0,1,2.",
)
SWEEP_SEEDS = (0, 1, 2)


def numbers(name: str, values: list[str] | None) -> list[int]:
    """Return the integers of a flag. Raises UsageError if a value is not an integer."""
    try:
        return [int(x) for x in values or ()]
    except ValueError as error:
        raise UsageError(f"--{name}: got {values}, expected integers") from error


def sweep_seeds() -> list[int]:
    """Return the seeds of a sweep. Raises UsageError if one is given twice or is negative."""
    seeds = numbers("seeds", SEEDS.value) or list(SWEEP_SEEDS)
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds: got {SEEDS.value}, expected different integers from 0 on")
    return seeds
