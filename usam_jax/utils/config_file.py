"""The flag --config: a config file by path or by name, and overrides of fields that exist."""

import pathlib
import re
import runpy
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from usam_jax.utils.bundled import bundled_folder, make_importable
from usam_jax.utils.errors import UsageError
from usam_jax.utils.renamed_fields import RENAMED

OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


class ConfigFileParser(flags.ArgumentParser):
    """Parse `care`, `care:NETWORK` or `PATH/care.py[:NETWORK]` to a locked config.

    What follows the colon is the argument of the file's `get_config`. Raises UsageError if the file
    or an overridden field does not exist.
    """

    def parse(self, given: str) -> ConfigDict:
        file, *network = given.split(":", 1)
        path = find_config(file)
        # Config files import each other as `configs`: an edited copy of the folder comes first.
        folders = (x for x in path.parents[:2] if x.name == "configs")
        make_importable("configs", next(folders, None))
        config = runpy.run_path(str(path))["get_config"](*network)
        refuse_renamed_fields(path, config)
        check_overrides(config, sys.argv)
        config.lock()
        return config


def load_config(file: str, network: str, argv: Sequence[str]) -> ConfigDict:
    """The config `FILE:NETWORK` with the overrides `--config.FIELD` of a command line.

    Raises UsageError if the file, the network or an overridden field does not exist.
    """
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values["config"].parser = ConfigFileParser()
    given = [x for i, x in enumerate(argv) if OVERRIDE.match(x) or is_value(argv, i)]
    values([argv[0], f"--config={file}:{network}", *given])
    return holder.value


def is_value(argv: Sequence[str], i: int) -> bool:
    """Whether argument i is the value of the override before it, as in `--config.seed 3`."""
    before = argv[i - 1] if i else ""
    return bool(OVERRIDE.match(before)) and "=" not in before and not argv[i].startswith("-")


def refuse_renamed_fields(path: pathlib.Path, config: ConfigDict) -> None:
    """Raise UsageError if a config file sets a field under its old name, which nothing reads."""
    for section, renamed in RENAMED.items():
        for old, new in renamed.items():
            if old in config.get(section, {}):
                raise UsageError(
                    f"{path}: got the field {section}.{old}, expected {section}.{new}, its name now"
                )


def find_config(given: str) -> pathlib.Path:
    """The config file of a path (`*.py`) or of a name in the bundled configs.

    Raises UsageError, which lists the names, if there is no such file.
    """
    path = pathlib.Path(given)
    if path.suffix != ".py":
        path = bundled_folder("configs") / f"{given}.py"
    if not path.is_file():
        raise UsageError(
            f"--config: got {given}, expected a path to a .py file or one of "
            f"{', '.join(config_names())}"
        )
    return path.resolve()


def name_and_network(given: str) -> tuple[str, str]:
    """`("care", "unet")` for configs/care.py:unet or care:unet, `("care", "")` for care.

    The name of a recipe in configs/published begins with `published_`.
    """
    file, _, network = given.partition(":")
    path = pathlib.PurePath(file)
    return "published_" * (path.parent.name == "published") + path.stem, network


def config_names() -> list[str]:
    folder = bundled_folder("configs")
    return sorted(str(x.relative_to(folder).with_suffix("")) for x in folder.rglob("*.py"))


def check_overrides(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Raise UsageError if an argument `--config.FIELD` overrides a field that does not exist."""
    for match in filter(None, map(OVERRIDE.match, arguments)):
        section, path = config, "config"
        for name in match[1].split("."):
            if not isinstance(section, ConfigDict) or "[" in name:
                break  # an element of a tuple, which config_flags checks
            if name not in section:
                raise UsageError(describe_unknown(section, path, name))
            section, path = section[name], f"{path}.{name}"


def describe_unknown(section: ConfigDict, path: str, name: str) -> str:
    if new := RENAMED.get(path.removeprefix("config."), {}).get(name):
        return f"--{path}.{name}: the field was renamed, expected --{path}.{new}"
    return f"--{path}.{name}: no such field, expected one of {', '.join(section)}"
