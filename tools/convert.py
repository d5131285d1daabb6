"""Convert SAM's weights, or a published U-SAM's, to this package's safetensors.

    python -m tools.convert --config=care SOURCE DESTINATION.safetensors

SOURCE is sam_vit_b_01ec64.pth, the model.safetensors of facebook/sam-vit-base, or the .pth file of
a trained U-SAM. The config chooses the network and the image size.
"""

import pathlib
import sys

from ml_collections import ConfigDict

from usam_jax.io.safetensors_file import write_safetensors
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.outputs import Output, check_outputs
from usam_jax.weights import load


def convert(source: pathlib.Path, destination: pathlib.Path, model: ConfigDict) -> None:
    """Write the weights in `source` that the network of `config.model` has, as float32 arrays.

    Raises WeightsError if `source` cannot be used or `destination` cannot be written.
    """
    variables, news = load.read_weights(source, model)
    console.info(f"{source}: {news}")
    arrays = load.flatten(variables)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(destination, arrays)
    except OSError as error:
        raise WeightsError(f"{destination}: cannot be written ({error})") from error
    console.info(f"{destination}: {len(arrays)} arrays, for --config.init_from={destination}")


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Convert the file that the command line names."""
    if len(arguments) != 2 or not arguments[1].endswith(".safetensors"):
        raise UsageError(
            f"arguments: got {arguments}, expected SOURCE DESTINATION.safetensors\n{__doc__}"
        )
    source, destination = map(pathlib.Path, arguments)
    output = Output(destination, "converted weights", "Give another DESTINATION.")
    check_outputs([output], {source: "the checkpoint to convert"})
    convert(source, destination, config.model)


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
