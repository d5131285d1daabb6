"""Trains or evaluates: `python -m usam_jax.main --config=configs/care.py`."""

import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from usam_jax import logs
from usam_jax.errors import UsageError, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; runs/NAME of configs/NAME.py by default."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and then evaluate, or evaluate the best checkpoint."
)
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The arguments that are no flags. Raises UsageError for what cannot be parsed."""
    try:
        rest = flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"{error}\nSee README.md, or configs/care.py for every field.") from error
    if CONFIG.value is None:
        raise UsageError("--config is missing; for instance --config=configs/care.py")
    if rest[1:]:
        raise UsageError(f"unknown arguments {rest[1:]}; flags begin with --")
    return rest


def run(argv: Sequence[str]) -> None:
    """What the flags ask for."""
    del argv
    from usam_jax import evaluate, train  # after the flags: a wrong one should not wait for JAX

    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(WORKDIR.value or f"runs/{name}")
    if MODE.value == "train":
        train.train(CONFIG.value, workdir)
    evaluate.evaluate_workdir(CONFIG.value, workdir)


def main(argv: Sequence[str]) -> int:
    """Runs and returns the exit code; a traceback only with --debug."""
    if "--help" in argv:
        print(f"{__doc__}\n\n{flags.FLAGS.main_module_help()}")
        return 0
    try:
        run(parse_flags(argv))
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        logs.say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
