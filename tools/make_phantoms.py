"""Writes generated pelvis CT phantoms as NIfTI volumes in nnU-Net's raw layout.

    python -m tools.make_phantoms DEST [--num_train=20 --num_test=5 --size=256 --seed=0 --anatomy=single]

Train on them with --config=configs/nnunet.py --config.data.root=DEST.
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.data.phantoms import anatomy, nifti_export
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError

NUM_TRAIN = flags.DEFINE_integer("num_train", 20, "Number of training patients.", lower_bound=1)
NUM_TEST = flags.DEFINE_integer("num_test", 5, "Number of test patients.", lower_bound=0)
SIZE = flags.DEFINE_integer("size", 256, "Rows and columns of a slice.", lower_bound=16)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the population.", lower_bound=0)
ANATOMY = flags.DEFINE_enum(
    "anatomy",
    "single",
    list(anatomy.VERSIONS),
    "Kind of phantom. single: one rectum, which its place gives away. loops: several loops of bowel "
    "that look alike, of which one is the rectum.",
)


def main(_config: ConfigDict, arguments: list[str]) -> None:
    """Write the phantoms to DEST."""
    if len(arguments) != 1:
        raise UsageError(f"found {arguments}, expected DEST\n{__doc__}")
    folder = pathlib.Path(arguments[0])
    counts = (NUM_TRAIN.value, NUM_TEST.value)
    nifti_export.write_nnunet(
        folder, *counts, size=SIZE.value, seed=SEED.value, anatomy=ANATOMY.value
    )
    console.info(f"{folder}: {counts[0]} training patients, {counts[1]} test patients")


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
