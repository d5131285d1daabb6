"""Write arrays as safetensors.

`torch_checkpoint` reads them.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

from usam_jax.utils.files import atomic_write


def write_safetensors(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], description: str = ""
) -> None:
    """Write arrays by name, and a description if given as the metadata entry `usam_jax`.

    Raises OSError if the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    # Several entries would be written in random order, which would change the checksum.
    metadata = {"usam_jax": description} if description else None
    with atomic_write(path) as temporary:
        # `save_file` makes a file that only its owner can read.
        temporary.write_bytes(save(arrays, metadata))
