"""Entry points of the tools' console scripts (`[project.scripts]` in pyproject.toml)."""

import functools
import importlib

from usam_jax.utils.bundled import make_importable


def run_tool(name: str) -> int:
    """Run tools/NAME.py with the arguments of the command line and return its exit code."""
    make_importable("tools")
    return importlib.import_module(f"tools.{name}").run_command_line()


compare = functools.partial(run_tool, "compare")
compare_networks = functools.partial(run_tool, "compare_networks")
convert = functools.partial(run_tool, "convert")
export = functools.partial(run_tool, "export")
import_weights = functools.partial(run_tool, "import_weights")
make_phantoms = functools.partial(run_tool, "make_phantoms")
prepare = functools.partial(run_tool, "prepare")
score = functools.partial(run_tool, "score")
