"""Weights, inputs and probes of the golden values, rebuilt from names alone.

Every array comes from NumPy's frozen RandomState stream, seeded by the CRC32 of its name, so that
the values printed by the PyTorch reference can be compared on any machine, without its weights.
Layouts are torch's: NCHW, OIHW.
"""

import json
import math
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
USAM = GOLDEN / "usam"


def stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def normal(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    return stream(salt + name).standard_normal(shape).astype(np.float32)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the checkpoint "usam_care", "usam_word" or "sam_vit_b"."""
    return read_manifest(USAM / f"{name}_manifest.json")


def read_manifest(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    return {tensor: tuple(shape) for tensor, shape in json.loads(path.read_text()).items()}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor, scaled by its role so that activations stay of order one."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    z = normal(name, shape)
    embedding = name.endswith(("mask_tokens.weight", "iou_token.weight"))
    if leaf == "running_mean":
        return 0.1 * z
    if leaf == "running_var":
        return 1.0 + 0.2 * np.abs(z)
    if leaf == "pos_embed":
        return 0.5 * z
    if leaf in ("rel_pos_h", "rel_pos_w"):
        return 0.1 * z
    if leaf == "positional_encoding_gaussian_matrix":
        return z
    if embedding or ("embed" in name and len(shape) == 2):
        return 0.5 * z
    if leaf == "bias":
        return 0.05 * z
    if len(shape) == 1:
        return 1.0 + 0.1 * z
    residual = name.endswith(("attn.proj.weight", "lin2.weight", "out_proj.weight"))
    gain = 0.2 if residual else 1.0
    return (gain * z / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def state_dict(name: str) -> dict[str, np.ndarray]:
    return {entry: tensor(entry, shape) for entry, shape in manifest(name).items()}


def images(batch: int, salt: str = "", size: int = 224) -> np.ndarray:
    """Smooth grey images float32[batch, size, size] in [0, 1] (torch gets three equal channels)."""
    coarse = normal(f"image/{size}", (batch, 1, 14, 14), salt)[:, 0]
    cell = np.ones((1, size // 14 + 1, size // 14 + 1), np.float32)
    smooth = np.kron(coarse, cell)[:, :size, :size]
    noise = 0.1 * normal(f"noise/{size}", (batch, 1, size, size), salt)[:, 0]
    return (1.0 / (1.0 + np.exp(-(smooth + noise)))).astype(np.float32)


def masks(batch: int, classes: int, salt: str = "", size: int = 224) -> np.ndarray:
    """Blocky label maps int64[batch, size, size]."""
    coarse = np.abs(normal(f"mask/{classes}/{size}", (batch, 14, 14), salt)) * 997.0
    cell = np.ones((1, size // 14 + 1, size // 14 + 1), np.int64)
    return np.kron(coarse.astype(np.int64) % classes, cell)[:, :size, :size]


def volumes(batch: int, salt: str = "", size: int = 32) -> np.ndarray:
    """Smooth grey volumes float32[batch, size, size, size] in [0, 1]."""
    coarse = normal(f"volume/{size}", (batch, 1, 4, 4, 4), salt)[:, 0]
    smooth = np.kron(coarse, np.ones((1,) + (size // 4,) * 3, np.float32))
    noise = 0.1 * normal(f"volume noise/{size}", (batch, 1, size, size, size), salt)[:, 0]
    return (1.0 / (1.0 + np.exp(-(smooth + noise)))).astype(np.float32)


def volume_labels(batch: int, classes: int, salt: str = "", size: int = 32) -> np.ndarray:
    """Blocky label volumes int64[batch, size, size, size]."""
    coarse = np.abs(normal(f"volume labels/{classes}/{size}", (batch, 4, 4, 4), salt)) * 997
    cell = np.ones((1,) + (size // 4,) * 3, np.int64)
    return np.kron(coarse.astype(np.int64) % classes, cell)


def points(batch: int, count: int, salt: str = "", size: int = 224) -> np.ndarray:
    """Points (x, y) float32[batch, count, 2] in pixels."""
    z = normal(f"points/{count}/{size}", (batch, count, 2), salt)
    return np.floor(size / (1.0 + np.exp(-z))).astype(np.float32)


def boxes(batch: int, salt: str = "", size: int = 224) -> np.ndarray:
    """Boxes (x0, y0, x1, y1) float32[batch, 4] in pixels."""
    return np.sort(points(batch, 2, salt + "box", size), axis=1).reshape(batch, 4)


def probe(name: str, array: np.ndarray, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mean, standard deviation and L2 norm of an array in torch's layout, and `count` samples."""
    flat = np.asarray(array, np.float64).ravel()
    index = stream(f"probe/{name}").randint(0, flat.size, size=count)
    return np.array([flat.mean(), flat.std(), np.sqrt((flat**2).sum())]), flat[index]
