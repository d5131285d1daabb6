"""The command line that every program here shares: a config, errors by name, exit codes."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from usam_jax import logs
from usam_jax.errors import DISK_FULL, UsageError, UserError, WeightsError

CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.", lock_config=True)
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

HINT = "See README.md; configs/care.py tells every field."


def parse(argv: Sequence[str], needs_config: bool) -> tuple[Any, list[str]]:
    """The config, None where none is given nor needed, and the arguments that are no flags.

    Raises UsageError for a flag, field or value that is wrong, or a config that cannot be loaded.
    """
    names = [x.lstrip("-").partition("=")[0] for x in argv]
    if "config" not in names and any(x.startswith("config.") for x in names):
        raise UsageError("--config.FIELD=VALUE needs a --config before it; see configs/")
    try:
        rest = flags.FLAGS(list(argv))
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # the first touch is what fails where the file is not there
    except (AttributeError, KeyError) as error:
        raise UsageError(f"the config has no such field: {error.args[0]}\n{HINT}") from error
    except (flags.Error, OSError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UsageError(f"{error}\n{HINT}") from error
    if needs_config and CONFIG.value is None:
        raise UsageError("--config is missing; for instance --config=configs/care.py")
    return CONFIG.value, rest[1:]


def run(
    main_fn: Callable[[Any, list[str]], None], argv: Sequence[str], needs_config: bool = True
) -> int:
    """Calls `main_fn` with the config and the arguments and returns the exit code."""
    if "--help" in argv:
        module = sys.modules["__main__"]
        print(f"{module.__doc__}\n{flags.FLAGS.get_help()}")
        return 0
    try:
        main_fn(*parse(argv, needs_config))
    except UserError as error:
        return report(error)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        text = f"the disk is full ({error}); free some space and give the same command again"
        return report(WeightsError(text))
    except KeyboardInterrupt:
        logs.say("stopped; the same command goes on from what is saved")
        return 130
    return 0


def report(error: UserError) -> int:
    """Prints the error that is being handled; its exit code."""
    if flags.FLAGS.is_parsed() and DEBUG.value:
        traceback.print_exc()
    logs.say(f"error: {error}")
    return error.exit_code
