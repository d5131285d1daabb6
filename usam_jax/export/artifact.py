"""Export of a run's best checkpoint: program, weights, description and model card.

The program needs only JAX to run. The weights are for this package and, on request, for torch.
"""

import json
import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data.packed.encode import CLAHE_TILES
from usam_jax.data.preprocessing import Preparation, make_preparation, source_kind
from usam_jax.data.prompt_modes import trained_with
from usam_jax.export.model_card import write_card
from usam_jax.io.safetensors_file import write_safetensors
from usam_jax.models import Prompts, make_model
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_images
from usam_jax.models.common.spec import InputSpec
from usam_jax.models.ops import gpu
from usam_jax.training import run_record
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.files import atomic_write, checksum, read_json, write_json, write_text
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import load, run_checkpoint, run_config
from usam_jax.weights.maps import maps_of
from usam_jax.weights.name_map import Variables

ARTEFACT, WEIGHTS = "model.jax_export", "model.safetensors"
CONFIG, CARD = "config.json", "README.md"
PLATFORMS = ("cpu", "cuda")
# A flatbuffer is limited to 2 GiB; the program itself takes 1 to 2 MB.
MAX_WEIGHT_BYTES = (1 << 31) - (16 << 20)
INPUTS = {
    "images": "uint8[b h w], prepared as `preprocessing` describes; h = w = image_size",
    "points_xy": "float32[b p 2], (x, y) in pixels of the prepared image; p at least 1",
    "point_labels": "int32[b p]; 1: foreground, 0: background, -1: no point",
    "boxes_xyxy": "float32[b 4], (x0, y0, x1, y1) in pixels of the prepared image",
    "prompts_given": "bool[b p+1]; which points are used and, last, whether the box is",
    "point_classes": "int32[b p]; index of each point's class in `classes`; 0 for a background point; "
    "points lie on whole numbers, and of several on one pixel only the last is given",
    "previous": "float32[b h w k]; probabilities of the last prediction, or zeros",
}
OF_INTERACTIVE = ("point_classes", "previous")
OUTPUTS = {
    "labels": "uint8[b h w], indices of `classes`",
    "probabilities": "float32[b h w k], of each class; they sum to 1",
}


def inputs_of(config: ConfigDict) -> dict[str, str]:
    """Return the inputs of a network's program in order, with descriptions.

    `config` is `config.model`. Networks that are not promptable take the images alone.
    """
    if not models.get(config.name).promptable:
        return {"images": INPUTS["images"]}
    left_out = () if config.get("interactive", False) else OF_INTERACTIVE
    return {name: words for name, words in INPUTS.items() if name not in left_out}


def make_artefact(config: ConfigDict, variables: Variables) -> bytes:
    """Return a serialised `jax.export` program of the whole prediction, weights included.

    `config` is `config.model`. The program runs on PLATFORMS, takes `inputs_of` the network in
    order and returns OUTPUTS. The batch size b and the number of points p are any number from 1. Raises
    WeightsError if the weights exceed the limit of the format.
    """
    model = make_model(config)
    size = sum(x.nbytes for x in jax.tree.leaves(variables))
    if size > MAX_WEIGHT_BYTES:
        raise WeightsError(
            f"the weights take {size / 1e9:.2f} GB, but {ARTEFACT} holds at most "
            f"{MAX_WEIGHT_BYTES / 1e9:.2f} GB. Export a smaller model."
        )

    def predict(images: jax.Array, *prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = Prompts(*prompts) if prompts else None
        logits: Any = model.apply(variables, batch_images(images), given)
        return logits.argmax(-1).astype(jnp.uint8), jax.nn.softmax(logits)

    b, p = jax.export.symbolic_shape("b, p")
    side = config.image_size
    arguments = {
        "images": ((b, side, side), jnp.uint8),
        "points_xy": ((b, p, 2), jnp.float32),
        "point_labels": ((b, p), jnp.int32),
        "boxes_xyxy": ((b, 4), jnp.float32),
        "prompts_given": ((b, p + 1), jnp.bool_),
        "point_classes": ((b, p), jnp.int32),
        "previous": ((b, side, side, config.num_classes), jnp.float32),
    }
    shapes = [jax.ShapeDtypeStruct(*arguments[name]) for name in inputs_of(config)]
    with gpu.forms(False):  # cuDNN's attention has no stable format and needs a certain GPU
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(*shapes)
    return bytes(exported.serialize())


def describe_preprocessing(preparation: Preparation, inside: InputSpec) -> dict[str, Any]:
    """Return a description of how an axial slice in HU becomes the program's input image."""
    return {
        "orientation": "rows from front to back, columns from the patient's right to left",
        "transposed": preparation.transposed,
        "window_level_hu": preparation.level,
        "window_width_hu": preparation.width,
        "intensity": preparation.intensity,
        "image_size": preparation.size,
        "resampling": "square pixels, the longer side to image_size; by area to shrink, else linear",
        "padding": "0, evenly on both sides; an odd pixel goes below or to the right",
        "clahe_limit": preparation.clahe_limit,
        "clahe_tiles": list(CLAHE_TILES),
        "normalisation_inside": {"scale": 1 / 255, "mean": inside.mean, "std": inside.std},
    }


def describe_run(workdir: pathlib.Path, saved: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the content of config.json, which has no path and no name of a case."""
    record, kind = read_json(Workdir(workdir).data), source_kind(workdir, saved)
    config = ConfigDict(saved["model"])
    spec = models.get(config.name).at(config)
    return {
        "schema_version": 1,
        "classes": list(saved["data"]["classes"]),
        "preprocessing": describe_preprocessing(make_preparation(saved, kind), spec.input),
        "inputs": inputs_of(config),
        "promptable": spec.promptable,
        "outputs": OUTPUTS,
        "model": saved["model"] | {"name": registry.short_name(saved["model"]["name"])},
        "prompts": {"trained_with": trained_with(saved), **saved["prompts"]},
        "checkpoint_step": step,
        "checkpoint_chosen_on": saved["eval"]["select_on"],
        "init_from": ", ".join(pathlib.Path(x).name for x in saved["init_from"].split(",")),
        "data": {
            "kind": kind,
            "fingerprint": record.get("fingerprint"),
            "num_slices": {name: len(record.get(name, [])) for name in ("train", "val", "test")},
        },
        "versions": run_record.versions(),
    }


def find_evaluations(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Return the summaries of all evaluations of the checkpoint at `step`."""
    summaries = [read_json(path) for path in Workdir(workdir).summaries()]
    return [x for x in summaries if x.get("checkpoint_step") == step]


def require_own(folder: pathlib.Path) -> None:
    """Raise UsageError if `folder` holds something else than an export, such as the run itself."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / ARTEFACT).is_file()
    ):
        raise UsageError(
            f"{folder} is a file, or a folder that holds something else than an exported model. "
            "Give a folder that does not exist yet."
        )


def export_run(workdir: pathlib.Path, folder: pathlib.Path, torch: bool) -> None:
    """Write a run's best checkpoint to `folder` as ARTEFACT, WEIGHTS, CONFIG and CARD.

    If `torch`, also writes NETWORK.safetensors with the published names. Raises WeightsError if
    there is no checkpoint, it is too large or `folder` cannot be written, and UsageError if
    `folder` holds something else or the network takes windows of slices.
    """
    require_own(folder)
    saved = run_config.require_config(workdir)
    config = ConfigDict(saved["model"])
    if config.slices > 1:
        raise UsageError(
            f"config.model.slices: got {config.slices}, expected 1: an exported program takes single "
            "slices. Predict volumes with this run: python -m usam_jax.predict"
        )
    ignored = maps_of(config.name)[0].ignored if torch else ()
    step, variables = run_checkpoint.load_best(workdir, config)
    description = describe_run(workdir, saved, step)
    artefact = make_artefact(config, variables)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # First, because `require_own` recognises an interrupted export by this file.
        with atomic_write(folder / ARTEFACT) as temporary:
            temporary.write_bytes(artefact)
        save_weights(folder / WEIGHTS, load.flatten(variables), description)
        published = f"{description['model']['name']}_torch.safetensors"
        (folder / published).unlink(missing_ok=True)  # of an earlier export
        if torch:
            save_weights(folder / published, load.to_published(variables, config), description)
        names = [ARTEFACT, WEIGHTS, *([published] if torch else [])]
        description["sha256"] = {name: checksum(folder / name) for name in names}
        write_json(folder / CONFIG, description)
        write_text(folder / CARD, write_card(description, find_evaluations(workdir, step)))
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written ({error})") from error
    for name in (*names, CONFIG, CARD):
        console.info(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.1f} MB")
    if torch:
        reasons = "\n".join(f"  {pattern}: {reason}" for pattern, reason in ignored)
        console.info(
            f"{published} lacks tensors that affect no output. Load with strict=False:\n{reasons}"
        )


def save_weights(
    path: pathlib.Path, arrays: dict[str, np.ndarray], description: dict[str, Any]
) -> None:
    """Write arrays to a safetensors file, with classes, model and preprocessing as metadata."""
    about = {name: description[name] for name in ("classes", "model", "preprocessing")}
    write_safetensors(path, arrays, json.dumps(about))
