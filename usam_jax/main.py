"""Trains and evaluates U-SAM.

python -m usam_jax.main --config=configs/care.py [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from usam_jax import cli
from usam_jax.errors import UsageError

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; runs/NAME of configs/NAME.py by default."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and then evaluate, or evaluate the best checkpoint."
)


def main(config: ConfigDict, arguments: list[str]) -> None:
    """What the flags ask for."""
    if arguments:
        raise UsageError(f"unknown arguments {arguments}; flags begin with --")
    from usam_jax import evaluate, train  # after the flags: a wrong one should not wait for JAX
    from usam_jax.data.sources import name_classes

    name_classes(config)
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(WORKDIR.value or f"runs/{name}")
    if MODE.value == "train":
        train.train(config, workdir)
    evaluate.evaluate_workdir(config, workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
