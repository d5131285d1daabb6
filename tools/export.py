"""Export the best checkpoint of a run for use without this package.

    python -m tools.export WORKDIR DEST [--torch]

The folder DEST gets
  model.jax_export    program and weights for CPU and CUDA and any batch size; needs only JAX
  model.safetensors   the weights, for --config.init_from
  config.json         preprocessing, classes, prompts and checksums
  README.md           a model card with the results in WORKDIR/eval
  NETWORK_torch.safetensors    with --torch: the weights under the published PyTorch names
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.export.artifact import export_run
from usam_jax.utils import cli
from usam_jax.utils.errors import UsageError

TORCH = flags.DEFINE_bool("torch", False, "Also write the weights under the published names.")


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """Export the run that the command line names."""
    if len(arguments) != 2:
        raise UsageError(f"arguments: got {arguments}, expected WORKDIR DEST\n{__doc__}")
    workdir, folder = map(pathlib.Path, arguments)
    export_run(workdir, folder, TORCH.value)


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
