"""The command line that all programs share: --config, error messages and exit codes."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import config_flags

from usam_jax.utils import console, gpu_driver, xla_flags
from usam_jax.utils.bundled import bundled_folder, make_importable
from usam_jax.utils.config_file import ConfigFileParser, load_config, name_and_network
from usam_jax.utils.errors import DISK_FULL, Stopped, UsageError, UserError, WeightsError
from usam_jax.utils.shared_memory import FULL, is_from_shared_memory

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's config: NAME or FILE.py, and :NETWORK for another network."
)
flags.FLAGS["config"].parser = ConfigFileParser()
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

NO_BACKEND = "Unable to initialize backend"  # in JAX's message, which is a plain RuntimeError
BAD_OPTION = ("No such compile option", "While setting option")  # in XLA's messages
LESS_MEMORY = (
    "To resume the same run, set config.model.remat=True (U-SAM, S and SAMed), on several devices "
    "config.train.fsdp=True, or, if it evaluates, a smaller config.eval.batch_size. For a run in "
    "another --workdir, set a smaller config.train.batch_size, config.train.grad_accum_steps=2 or "
    "config.model.dtype=bfloat16. To predict volumes, set a smaller --batch_size."
)
HINT = f"See README.md; {bundled_folder('configs') / 'care.py'} describes every field."


def parse(argv: Sequence[str], needs_config: bool) -> tuple[Any, list[str]]:
    """The config (None if none is given) and the arguments that are not flags.

    Raises UsageError for a wrong flag, field or value, if the config cannot be loaded, and if
    `needs_config` and there is none.
    """
    names = [x.lstrip("-").partition("=")[0] for x in argv]
    if "config" not in names and any(x.startswith("config.") for x in names):
        raise UsageError("--config.FIELD=VALUE: expected --config=NAME before it")
    try:
        rest = flags.FLAGS(list(argv))
    except (AttributeError, KeyError) as error:
        raise UsageError(f"--config: {error.args[0]}\n{HINT}") from error
    except (flags.Error, OSError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UsageError(f"{error}\n{HINT}") from error
    make_importable("configs")
    if needs_config and CONFIG.value is None:
        raise UsageError("--config: missing, expected a config such as --config=care")
    return CONFIG.value, rest[1:]


def config_name() -> tuple[str, str]:
    """Name and network of --config, as `config_file.name_and_network` splits it."""
    return name_and_network(config_flags.get_config_filename(flags.FLAGS["config"]))


def network_config(network: str) -> Any:
    """The config of --config for a network, with the overrides of the command line.

    Raises UsageError if --config names a network itself or a field does not exist.
    """
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    file, _, named = given.partition(":")
    if named:
        raise UsageError(f"--config: got {given}, expected {file}: this program sets the network")
    return load_config(file, network, sys.argv)


def run(
    main_fn: Callable[[Any, list[str]], None], argv: Sequence[str], needs_config: bool = True
) -> int:
    """Call `main_fn(config, arguments)`, report its errors and return the exit code."""
    if "--help" in argv:
        module = sys.modules[main_fn.__module__]
        print(f"{module.__doc__}\n{flags.FLAGS.get_help()}")
        return 0
    console.accept_all_names()
    signal.signal(signal.SIGTERM, interrupt)
    xla_flags.use_fast_convolutions()
    try:
        main_fn(*parse(argv, needs_config))
    except UserError as error:
        return report(error)
    except RuntimeError as error:
        if type(error).__name__ != "JaxRuntimeError" and NO_BACKEND not in str(error):
            raise
        return report(UserError(explain_device_error(str(error))))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        if is_from_shared_memory(error):
            return report(UserError(f"{error}: {FULL}"))
        text = f"the disk is full ({error}). Free some space and run the same command again."
        return report(WeightsError(text))
    except Stopped as stopped:
        console.info(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        console.info("stopped; finished work is saved")
        return 130
    return 0


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def explain_device_error(text: str) -> str:
    """The error message for a failure of JAX's runtime."""
    first = text.strip().splitlines()[0][:300]
    if NO_BACKEND in text:
        advice = gpu_driver.problem() or "Set JAX_PLATFORMS=cpu to compute on the CPU."
        return f"JAX cannot use the device: {first}\n{advice}"
    if any(x in text for x in BAD_OPTION):
        return f"config.train.compiler_options: got an option that XLA does not take ({first})"
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return f"the device is out of memory ({first}). {LESS_MEMORY}"
    return (
        f"the device or another process of this run failed: {first}\nRun the same command again to "
        "resume from the last checkpoint; --debug shows the traceback."
    )


def report(error: UserError) -> int:
    """Print the error that is being handled and return its exit code."""
    if flags.FLAGS.is_parsed() and DEBUG.value:
        traceback.print_exc()
    console.console.quiet = False
    console.info(f"error: {error}")
    return error.exit_code
