"""The command line that every program here shares: a config, errors by name, exit codes."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import config_flags

from usam_jax.utils import console, xla_flags
from usam_jax.utils.bundled import make_importable
from usam_jax.utils.config_file import ConfigFileParser, name_and_network
from usam_jax.utils.errors import DISK_FULL, Stopped, UsageError, UserError, WeightsError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's config: NAME or FILE.py, and :NETWORK for another network."
)
flags.FLAGS["config"].parser = ConfigFileParser()
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
    except (AttributeError, KeyError) as error:
        raise UsageError(f"the config has no such field: {error.args[0]}\n{HINT}") from error
    except (flags.Error, OSError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UsageError(f"{error}\n{HINT}") from error
    make_importable("configs")
    if needs_config and CONFIG.value is None:
        raise UsageError("--config is missing; for instance --config=care")
    return CONFIG.value, rest[1:]


def config_name() -> tuple[str, str]:
    """Name and network of --config, as `config_file.name_and_network` splits it."""
    return name_and_network(config_flags.get_config_filename(flags.FLAGS["config"]))


def run(
    main_fn: Callable[[Any, list[str]], None], argv: Sequence[str], needs_config: bool = True
) -> int:
    """Calls `main_fn` with the config and the arguments and returns the exit code."""
    if "--help" in argv:
        module = sys.modules[main_fn.__module__]
        print(f"{module.__doc__}\n{flags.FLAGS.get_help()}")
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    xla_flags.use_fast_convolutions()
    try:
        main_fn(*parse(argv, needs_config))
    except UserError as error:
        return report(error)
    except RuntimeError as error:
        if type(error).__name__ != "JaxRuntimeError":
            raise
        return report(UserError(explain_device_error(str(error))))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        text = f"the disk is full ({error}); free some space and give the same command again"
        return report(WeightsError(text))
    except Stopped as stopped:
        console.info(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        console.info("stopped; what was finished is saved")
        return 130
    return 0


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a program as Ctrl-C does, wherever it is."""
    raise KeyboardInterrupt


def explain_device_error(text: str) -> str:
    """What a failure of JAX's runtime means for the user."""
    first = text.strip().splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return (
            f"the device has too little memory ({first}). Try a smaller config.train.batch_size, "
            "config.train.grad_accum_steps=2, config.model.remat=True or config.model.dtype=bfloat16."
        )
    return (
        f"the device, or another process of this run, failed: {first}\nThe same command goes on "
        "from the last checkpoint; --debug shows more."
    )


def report(error: UserError) -> int:
    """Prints the error that is being handled; its exit code."""
    if flags.FLAGS.is_parsed() and DEBUG.value:
        traceback.print_exc()
    console.console.quiet = False
    console.info(f"error: {error}")
    return error.exit_code
