"""Turn published weights into a workdir, to evaluate and predict with them without training.

    python -m tools.import_weights --config=CONFIG [--config.init_from=FILE] WORKDIR

`config.init_from` must hold all weights of the network. Afterwards, as after training:

    python -m usam_jax.main --config=CONFIG --mode=eval --workdir=WORKDIR
    python -m usam_jax.predict --checkpoint=WORKDIR -i CT.nii.gz -o MASK.nii.gz
"""

import pathlib
import sys

from ml_collections import ConfigDict

from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Write the workdir that the command line names."""
    if len(arguments) != 1:
        raise UsageError(f"arguments: got {arguments}, expected WORKDIR\n{__doc__}")
    from usam_jax.training import imported_run

    workdir = pathlib.Path(arguments[0])
    imported_run.write(config, workdir)
    console.info(f"{workdir}: ready for --mode=eval and usam_jax.predict")


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
