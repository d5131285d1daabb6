"""Exports a run's best checkpoint, for use without this package.

    python -m tools.export WORKDIR DEST [--torch]

DEST, a folder, gets model.jax_export (the whole program with its weights, for CPUs and CUDA, any
batch size; needs only JAX), model.safetensors (the weights, for --config.init_from), config.json
(preprocessing, classes, prompts, checksums) and README.md (a model card with the results of
WORKDIR/eval). --torch adds usam.safetensors, the weights under the published PyTorch names.
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.export.artifact import export_run
from usam_jax.utils import cli
from usam_jax.utils.errors import UsageError

TORCH = flags.DEFINE_bool("torch", False, "Write the weights under the published names too.")


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if len(arguments) != 2:
        raise UsageError(f"found {arguments}, expected WORKDIR DEST\n{__doc__}")
    workdir, folder = map(pathlib.Path, arguments)
    export_run(workdir, folder, TORCH.value)


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
