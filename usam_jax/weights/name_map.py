"""Torch checkpoints of SAM and of the published U-SAM to this package's variables.

A tensor's place follows from its name: `blocks.0` in torch is `blocks_0` here. So there is one
rule for names and one for layouts, applied leaf by leaf to the tree that the model expects.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.models import make_model, variable_shapes
from usam_jax.models.usam import SIZES
from usam_jax.utils.errors import WeightsError

StateDict = Mapping[str, np.ndarray]
Variables = dict[str, Any]

EMBEDDINGS = re.compile(
    r"(iou_token|mask_tokens|point_embeddings\.\d|not_a_point_embed|no_mask_embed)$"
)
LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

# Parts of SAM that a U-SAM starts afresh, as the published code does.
FRESH_PARTS = ("mask_tokens", "output_hypernetworks_mlps", "output_upscaling")
# Parts of the checkpoints that touch no output.
UNUSED_PARTS = {
    "iou_prediction_head": "predicts mask quality, which nothing here uses",
    "lowres_output": "an output of the published code that nothing uses",
    "mask_downscaling": "embeds mask prompts, which U-SAM does not take",
    "num_batches_tracked": "a counter of torch's BatchNorm that nothing reads",
    "image_encoder.patch_embed": "the convolutional encoder takes its place",
}

# Names on the Hugging Face hub (facebook/sam-vit-base) to SAM's own; applied in this order.
HUGGING_FACE_NAMES = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each tensor of a checkpoint, by its name there, and what stays fresh here.

    `constants` holds what `params` cannot: the fixed matrix of the Fourier features.
    """

    loaded: list[str]
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left: dict[str, str]
    fresh: list[str]
    constants: Variables

    def __str__(self) -> str:
        reasons = sorted(set(self.left.values()))
        lines = [f"loaded {len(self.loaded)} tensors, {len(self.resized)} of them resized:"]
        lines += [f"  {name}: {a} -> {b}" for name, (a, b) in self.resized.items()]
        for reason in reasons:
            names = [name for name, why in self.left.items() if why == reason]
            lines.append(
                f"left out {len(names)}: {reason} ({names[0]}{', ...' * (len(names) > 1)})"
            )
        lines.append(f"left at their initial values: {len(self.fresh)} tensors of the model")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the model's variables: its path here and the torch tensors that it holds."""

    path: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def torch_names(self) -> list[str]:
        """SAM's name of the tensor, or of each tensor where several are stacked."""
        *parts, leaf = self.path[1:]
        dotted = [re.sub(r"_(\d+)$", r".\1", part) for part in (*parts, leaf)]
        dotted[-1] = LEAF_NAMES.get(leaf, dotted[-1])
        name = ".".join(dotted)
        if EMBEDDINGS.search(name):
            name += ".weight"
        if "output_hypernetworks_mlps" in parts:
            return [name.replace("_mlps.", f"_mlps.{i}.") for i in range(self.shape[0])]
        return [name]

    def from_torch(self, tensors: list[np.ndarray]) -> np.ndarray:
        """The array in this package's layout (channels last, kernels [h, w, in, out])."""
        arrays = [self._layout(np.asarray(t, np.float32), to_torch=False) for t in tensors]
        return np.stack(arrays) if self._stacked else arrays[0]

    def to_torch(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensors in torch's layout, the inverse of `from_torch`."""
        return [self._layout(a, to_torch=True) for a in (array if self._stacked else [array])]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.to_torch(np.broadcast_to(np.float32(0), self.shape))[0].shape

    @property
    def _stacked(self) -> bool:
        return "output_hypernetworks_mlps" in self.path

    def _layout(self, x: np.ndarray, to_torch: bool) -> np.ndarray:
        if self.path[-1] != "kernel":
            return x
        if x.ndim == 2:
            return x.T
        transposed = self.path[-2] in ("up", "output_upscaling_0", "output_upscaling_3")
        if not transposed:
            return x.transpose(3, 2, 0, 1) if to_torch else x.transpose(2, 3, 1, 0)
        if to_torch:
            return x[::-1, ::-1].transpose(2, 3, 0, 1)
        return x.transpose(2, 3, 0, 1)[::-1, ::-1]


def model_leaves(config: ConfigDict) -> list[Leaf]:
    """Every array of the model that `config.model` describes; nothing is computed."""
    model = make_model(config)
    shapes = variable_shapes(model)
    flat = traverse_util.flatten_dict(shapes)
    return [Leaf(path, value.shape) for path, value in flat.items()]


def from_usam(state_dict: StateDict, config: ConfigDict) -> Variables:
    """Variables of a trained published U-SAM, complete, as numpy float32 arrays.

    Raises WeightsError that lists every missing, unknown and misshapen tensor.
    """
    tensors = {name.removeprefix("sam."): value for name, value in state_dict.items()}
    flat, problems = {}, Problems()
    for leaf in model_leaves(config):
        found = problems.check(leaf, tensors)
        if found:
            flat[leaf.path] = leaf.from_torch(found)
    problems.unknown += [n for n in tensors if n not in problems.used and not why_unused(n)]
    problems.raise_any("a published U-SAM", config)
    return traverse_util.unflatten_dict(flat)


def to_usam(variables: Variables, config: ConfigDict) -> dict[str, np.ndarray]:
    """A trained model's tensors under their published names and layouts, all that `from_usam` reads.

    What the published model has besides, UNUSED_PARTS, is not there: load them with strict=False.
    """
    flat, tensors = traverse_util.flatten_dict(variables), {}
    for leaf in model_leaves(config):
        prefix = "" if leaf.path[1] == "backbone" else "sam."
        arrays = leaf.to_torch(np.asarray(flat[leaf.path]))
        for name, array in zip(leaf.torch_names, arrays, strict=True):
            tensors[prefix + name] = np.ascontiguousarray(array)
    return tensors


def from_sam(state_dict: StateDict, config: ConfigDict) -> tuple[Variables, Report]:
    """What a fresh U-SAM takes from SAM: a partial `params` tree, and a report.

    `state_dict` has SAM's own names or those of the Hugging Face hub. `pos_embed` and the global
    blocks' relative positions are resized to the model's image size. The fixed matrix of the
    Fourier features is no parameter: it is in `report.constants`.
    Raises WeightsError that lists every missing, unknown and misshapen tensor.
    """
    tensors = dict(state_dict)
    if any(name.startswith("vision_encoder.") for name in tensors):
        tensors = sam_names(tensors)
    global_blocks = SIZES[config.variant].global_blocks
    flat, fresh, loaded, resized, problems = {}, [], [], {}, Problems()
    for leaf in model_leaves(config):
        if not comes_from_sam(leaf):
            fresh += leaf.torch_names
            continue
        (name,) = leaf.torch_names
        if name in tensors and _is_resizable(name, global_blocks):
            before = tensors[name]
            fits = before.ndim == len(leaf.shape) and before.shape[-1] == leaf.shape[-1]
            if fits and before.shape != leaf.shape:
                tensors[name] = _resize(before, leaf.shape)
                resized[name] = (before.shape, leaf.shape)
        found = problems.check(leaf, tensors)
        if found:
            flat[leaf.path] = leaf.from_torch(found)
            loaded.append(name)
    left = {n: _why_left(n) for n in tensors if n not in problems.used}
    problems.unknown += [name for name, why in left.items() if not why]
    problems.raise_any("SAM", config)
    tree = traverse_util.unflatten_dict(flat)
    return tree["params"], Report(loaded, resized, left, fresh, tree["constants"])


class Problems:
    """Collects what is wrong with a checkpoint, to be raised once."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.misshapen: list[str] = []

    def check(self, leaf: Leaf, tensors: StateDict) -> list[np.ndarray]:
        """The leaf's tensors, or nothing if one is missing or misshapen."""
        names = leaf.torch_names
        self.used.update(names)
        absent = [name for name in names if name not in tensors]
        wrong = [n for n in names if n in tensors and tensors[n].shape != leaf.torch_shape]
        self.missing += absent
        self.misshapen += [
            f"{n}: found {tensors[n].shape}, expected {leaf.torch_shape}" for n in wrong
        ]
        return [] if absent or wrong else [tensors[name] for name in names]

    def raise_any(self, source: str, config: ConfigDict) -> None:
        kinds = {"missing": self.missing, "unknown": self.unknown, "misshapen": self.misshapen}
        found = ["\n  ".join([f"{len(v)} {kind}:", *v]) for kind, v in kinds.items() if v]
        if found:
            raise WeightsError(
                f"these weights are not those of {source} with config.model.variant = "
                f"{config.variant}, num_classes = {config.num_classes}, image_size = "
                f"{config.image_size}\n"
                + "\n".join(found)
                + "\nCheck config.model against the file."
            )


def comes_from_sam(leaf: Leaf) -> bool:
    collection, part, *rest = leaf.path
    if collection == "batch_stats" or part == "backbone":
        return False
    if part != "mask_decoder":
        return True
    return rest[0] in ("transformer", "iou_token")


def why_unused(name: str) -> str:
    return next((why for part, why in UNUSED_PARTS.items() if part in name), "")


def _why_left(name: str) -> str:
    if any(f"mask_decoder.{part}" in name for part in FRESH_PARTS):
        return "started afresh, for other classes than SAM's"
    return why_unused(name)


def sam_names(tensors: StateDict) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in tensors.items():
        # The same matrix under two names, of which a file may hold either or both.
        name = name.replace("shared_image_embedding.", "prompt_encoder.shared_embedding.")
        for pattern, replacement in HUGGING_FACE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _is_resizable(name: str, global_blocks: tuple[int, ...]) -> bool:
    match = re.match(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]$", name)
    return name == "image_encoder.pos_embed" or bool(match and int(match[1]) in global_blocks)


def _resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear resizing with half-pixel centres and without antialiasing, as torch's interpolate."""
    resized = jax.image.resize(jnp.asarray(table, jnp.float32), shape, "linear", antialias=False)
    return np.asarray(resized)
