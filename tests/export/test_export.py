"""An exported run: a program that runs without this package, weights, and a model card."""

import functools
import hashlib
import json
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from conftest import (
    ROOT,
    make_variables,
    model_config,
    phantom_config,
    save_run,
    without_shape_checks,
)
from flax import traverse_util

from usam_jax import convert
from usam_jax.data.preprocessing import Preparation, make_preparation, source_kind
from usam_jax.evaluation import evaluate
from usam_jax.evaluation.case_metrics import score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.summary import summarise
from usam_jax.export import artifact, model_card
from usam_jax.models import Prompts, init_variables, make_model
from usam_jax.models.common.prompts import batch_images
from usam_jax.models.common.spec import InputSpec
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.files import write_json
from usam_jax.weights import load, name_map
from usam_jax.weights.maps.usam import PUBLISHED
from usam_jax.weights.name_map import NameMap
from usam_jax.weights.run_config import read_config

BATCHES = (1, 3, 8)
# Whether the first point, the second point and the box are given.
GIVEN = {"none": [0, 0, 0], "points": [1, 1, 0], "box": [0, 0, 1], "point_box": [1, 0, 1]}
FINGERPRINT = 64 * "a"
# A user's script: it needs jax, numpy and, for the card's code, OpenCV.
RUN = """
import sys
sys.modules |= {"usam_jax": None, "flax": None}
import jax, jax.export, numpy as np
with open("model.jax_export", "rb") as file:
    exported = jax.export.deserialize(file.read())
print(*exported.platforms)
options = {"xla_backend_optimization_level": 0}  # compiles in half the time
predict, found = jax.jit(exported.call, compiler_options=options), {}
with np.load("inputs.npz") as file:
    *arrays, modes = file.values()
for number, given in enumerate(modes):
    for n in map(int, sys.argv[1:]):
        batch = [x[:n] for x in arrays]
        labels, probabilities = predict(*batch, np.tile(given, (n, 1)))
        found |= {f"labels_{number}_{n}": labels, f"probabilities_{number}_{n}": probabilities}
with open("README.md") as file:
    code = file.read().split("```python")[1].split("```")[0]
scope = {}
exec(code, scope)
np.savez("found.npz", image=scope["image"], of_card=scope["labels"], **found)
"""


def make_inputs(size: int) -> dict[str, np.ndarray]:
    """Eight slices with two points and a box each, and the prompt modes of `GIVEN`."""
    rng = np.random.default_rng(3)
    corners = np.sort(rng.uniform(0, size, (8, 2, 2)), axis=1)
    return {
        "images": rng.integers(0, 256, (8, size, size), np.uint8),
        "points": rng.uniform(0, size, (8, 2, 2)).astype(np.float32),
        "labels": np.tile(np.int32([1, 0]), (8, 1)),
        "boxes": corners.reshape(8, 4).astype(np.float32),
        "modes": np.array(list(GIVEN.values()), bool),
    }


def write_summary(folder, step: int, prompts: str, classes: tuple[str, ...]) -> float:
    """Write an evaluation's fields that the card reads, and return the pooled Dice."""
    rng = np.random.default_rng(step)
    truth, predicted = rng.integers(0, 3, (2, 4, 8, 8)).astype(np.uint8)
    scoring = evaluate.make_scoring(phantom_config())
    scores = score_case(predicted, truth, (1.0, 1.0, 1.0), scoring)
    result = CaseResult("case", "patient", None, None, scores)
    pooled = evaluate.pooled_metrics(rng.integers(1, 50, (4, 3, 3)), classes)
    folder.mkdir(parents=True)
    common = {"checkpoint_step": step, "data_fingerprint": FINGERPRINT, "split": "test"}
    results = {"prompts": prompts, "pooled": pooled, "num_slices": 4}
    write_json(folder / "summary.json", common | results | summarise([result], scoring, True))
    return pooled["dice"]["mean"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with evaluations of its checkpoint and of an older one, and its export."""
    config = phantom_config(**{"data.clahe_limit": 2.0, "init_from": "weights/secret/sam.pth"})
    workdir, folder = (tmp_path_factory.mktemp(name) for name in ("run", "exported"))
    variables = init_variables(config.model, jax.random.key(0))
    # With fresh weights, prompts change the logits by less than the test demands.
    variables["params"] = jax.tree.map(lambda x: 1.35 * x, variables["params"])
    save_run(workdir, config, variables)
    parts = {"train": ["train/patient_7"] * 5, "val": [], "test": ["test/patient_8"]}
    write_json(workdir / "data.json", {"fingerprint": FINGERPRINT, **parts})
    classes = tuple(config.data.classes)
    write_summary(workdir / "eval" / "test_none", 1, "none (automatic)", classes)
    write_summary(workdir / "eval" / "test_box", 1, "box from the ground truth", classes)
    write_summary(workdir / "eval" / "val_old", 9, "an older checkpoint", classes)
    with without_shape_checks():
        artifact.export_run(workdir, folder, torch=True)
    return config, workdir, folder, variables


@pytest.fixture(scope="module")
def live(exported):
    """Logits of the model for all eight slices, one array per prompt mode."""
    config, _, _, variables = exported
    *arrays, modes = make_inputs(32).values()
    model = make_model(config.model)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def apply(variables, images, points, labels, boxes, given):
        prompts = Prompts(points, labels, boxes, given)
        return model.apply(variables, batch_images(images), prompts)

    def predict(variables):
        return [
            np.asarray(apply(variables, *map(jnp.asarray, arrays), jnp.tile(x, (8, 1))))
            for x in modes
        ]

    return predict, predict(variables)


def test_exported_program_equals_the_package(exported, live, tmp_path):
    _, workdir, folder, _ = exported
    for name in ("model.jax_export", "README.md"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    np.savez(tmp_path / "inputs.npz", **make_inputs(32))
    hu = np.random.default_rng(4).normal(40, 150, (50, 40)).astype(np.float32)
    np.save(tmp_path / "slice.npy", hu)
    command = [sys.executable, "-I", "-c", RUN, *map(str, BATCHES)]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.split() == ["cpu", "cuda"]
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)
    for number, logits in enumerate(live[1]):
        expected = np.asarray(jax.nn.softmax(logits))
        _, middle, highest = np.moveaxis(np.sort(expected), -1, 0)
        clear = highest - middle > 1e-5  # elsewhere the label depends on rounding
        assert clear.mean() > 0.99
        for n in BATCHES:
            labels = found[f"labels_{number}_{n}"]
            assert labels.dtype == np.uint8 and labels.shape == (n, 32, 32)
            np.testing.assert_array_equal(labels[clear[:n]], logits.argmax(-1)[:n][clear[:n]])
            np.testing.assert_allclose(
                found[f"probabilities_{number}_{n}"], expected[:n], rtol=0, atol=1e-5
            )
    none, points, box, _ = map(jax.nn.softmax, live[1])
    assert np.abs(points - none).max() > 0.01 and np.abs(box - points).max() > 0.01
    # The card's code prepares a slice in the same way as the training slices.
    prepared = make_preparation(read_config(workdir), "phantom").from_hu(hu, (1.0, 1.0))
    np.testing.assert_array_equal(found["image"], prepared)
    assert found["of_card"].shape == (1, 32, 32)


@pytest.mark.parametrize("pixel_mm", [(1.0, 1.0), (0.9, 0.7), (5.0, 0.3)])
@pytest.mark.parametrize(
    ("transposed", "clahe_limit", "shape"),
    [(False, 0.0, (30, 20)), (True, 2.5, (512, 400)), (True, 0.0, (96, 96))],
)
def test_card_code_prepares_slices_as_the_package_does(
    tmp_path, monkeypatch, pixel_mm, transposed, clahe_limit, shape
):
    preparation = Preparation(96, 35.0, 300.0, "clip", clahe_limit, transposed)
    description = {
        "preprocessing": artifact.describe_preprocessing(preparation, InputSpec()),
        "prompts": {"order": "xy"},
        "classes": ["background", "normal rectum"],
        "inputs": artifact.inputs_of(phantom_config().model),
    }
    code = model_card.write_code(description).replace("(1.0, 1.0)", str(pixel_mm))
    hu = np.random.default_rng(0).normal(40, 150, shape).astype(np.int16)
    np.save(tmp_path / "slice.npy", hu)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepare.py").write_text(code.split("with open")[0])
    scope = runpy.run_path("prepare.py")
    np.testing.assert_array_equal(scope["image"], preparation.from_hu(hu, pixel_mm))


def test_exported_weights_give_a_new_run_the_same_logits(exported, live):
    config, _, folder, variables = exported
    config = config.copy_and_resolve_references()
    config.init_from = str(folder / "model.safetensors")
    fresh = init_variables(config.model, jax.random.key(1))
    loaded = load.load_initial(config, fresh)
    predict, expected = live
    np.testing.assert_array_equal(predict(loaded), expected)
    config.init_from = str(folder / "usam_torch.safetensors")
    again = load.load_initial(config, fresh)
    assert_same_tree(again, jax.device_get(variables))


def test_export_describes_the_model_and_omits_private_data(exported):
    config, workdir, folder, _ = exported
    described = json.loads((folder / "config.json").read_text())
    names = {"model.jax_export", "model.safetensors", "usam_torch.safetensors"}
    assert {x.name for x in folder.iterdir()} == names | {"config.json", "README.md"}
    for name in names:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert described["sha256"][name] == digest
    assert described["classes"] == ["background", "normal rectum", "tumour"]
    assert described["model"] == config.model.to_dict() and described["checkpoint_step"] == 1
    how = described["preprocessing"]
    assert (how["image_size"], how["window_level_hu"], how["window_width_hu"]) == (32, 40, 400)
    assert (how["clahe_limit"], how["clahe_tiles"], how["transposed"]) == (2.0, [8, 8], False)
    assert described["prompts"]["trained_with"] == "3 points per class from the ground truth"
    assert described["data"]["num_slices"] == {"train": 5, "val": 0, "test": 1}

    card = (folder / "README.md").read_text()
    summary = json.loads((workdir / "eval" / "test_none" / "summary.json").read_text())
    dice = f"{100 * summary['pooled']['dice']['tumour']:.1f}"
    (row,) = [x for x in card.splitlines() if "none (automatic)" in x and x.startswith("|")]
    assert f"| {dice} |" in row and "| test |" in row
    for text in (
        "normal rectum and tumour",
        "not a medical device",
        "Apache-2.0",
        "box from the ground truth",
        "kind `phantom`",
        FINGERPRINT,
        "5 train, 1 test",
        "3 points per class from the ground truth",
        "`sam.pth`",
        "createCLAHE(2.0, (8, 8))",
    ):
        assert text in card, text
    assert "an older checkpoint" not in card
    everything = b"".join(x.read_bytes() for x in folder.iterdir())
    for private in (b"patient_7", b"secret", str(workdir).encode()):
        assert private not in everything, private


def test_card_explains_results_and_prompts(exported):
    _, workdir, folder, _ = exported
    described = json.loads((folder / "config.json").read_text())
    found = artifact.find_evaluations(workdir, 1)
    plain = model_card.write_card(described, found)
    described["checkpoint_chosen_on"] = "test"
    described["prompts"]["order"] = "rowcol"
    described["data"] |= {"kind": "care", "fingerprint": "another"}
    special = model_card.write_card(described, found)
    for text in (
        "results are too high",
        "(row, column)",
        "with an unknown window",
        "of other data",
    ):
        assert text in special and text not in plain, text
    assert "has not been evaluated" in model_card.write_card(described, [])


def test_card_code_runs_an_interactive_program(exported, tmp_path, monkeypatch):
    _, _, folder, _ = exported
    config = phantom_config(**{"model.interactive": True}).model
    with without_shape_checks():
        program = artifact.make_artefact(config, make_variables(config))
    (tmp_path / "model.jax_export").write_bytes(program)
    described = json.loads((folder / "config.json").read_text())
    described["inputs"] = artifact.inputs_of(config)
    card = model_card.write_card(described, [])
    assert "the last `probabilities` as `previous`" in card
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "slice.npy", np.zeros((40, 30), np.int16))
    (tmp_path / "card.py").write_text(card.split("```python")[1].split("```")[0])
    scope = runpy.run_path("card.py")
    assert scope["labels"].shape == (1, 32, 32) and scope["probabilities"].shape == (1, 32, 32, 3)
    before = scope["probabilities"]
    arguments = [scope[x] for x in ("points", "point_labels", "box", "given", "classes")]
    after = scope["predict"](scope["image"][None], *arguments, before)[1]
    assert np.abs(after - before).max() > 1e-4


def test_card_of_network_without_prompts(exported):
    _, _, folder, _ = exported
    described = json.loads((folder / "config.json").read_text())
    described["inputs"] = {"images": described["inputs"]["images"]}
    described["model"] = {"name": "unet"}
    described["prompts"]["trained_with"] = "none (automatic)"
    card = model_card.write_card(described, [])
    assert card.startswith("# unet: normal rectum and tumour")
    assert "= predict(image[None])\n" in card
    assert not any(text in card for text in ("points", "prompts_given", "a box"))


def test_source_kind_of_packed_data_is_their_source(tmp_path):
    saved = {"data": {"kind": "packed"}}
    write_json(tmp_path / "data.json", {"kind": "care"})
    assert source_kind(tmp_path, saved) == "care"


def test_export_run_overwrites_only_an_earlier_export(exported, monkeypatch):
    _, workdir, folder, _ = exported
    with pytest.raises(UsageError, match="holds something else than an exported model"):
        artifact.export_run(workdir, workdir, torch=False)
    with pytest.raises(UsageError, match="is a file"):
        artifact.export_run(workdir, workdir / "config.json", torch=False)
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(artifact, "make_artefact", lambda *_: b"another")
    artifact.export_run(workdir, folder, torch=False)
    assert (folder / "model.jax_export").read_bytes() == b"another"
    assert (folder / "model.safetensors").read_bytes() == before
    assert not (folder / "usam_torch.safetensors").exists()  # not left over from the earlier export


def test_make_artefact_rejects_weights_above_the_size_limit():
    huge = {"params": {"kernel": np.broadcast_to(np.float32(0), (1 << 29,))}}
    with pytest.raises(WeightsError, match=r"take 2.15 GB, .* holds at most 2.13 GB"):
        artifact.make_artefact(model_config(), huge)


def test_export_tool_names_folder_without_a_run(tmp_path):
    command = [sys.executable, "-m", "tools.export", str(tmp_path / "no"), str(tmp_path / "out")]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == WeightsError.exit_code
    assert "has no finished checkpoint" in done.stderr and not (tmp_path / "out").exists()


def assert_same_tree(a, b) -> None:
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_to_published_restores_names_and_tensors(tmp_path):
    published = recipe.state_dict("usam_care")
    variables = convert.from_usam(published, model_config())
    found = load.to_published(variables, model_config())
    unused = {name for name in published if name_map.first_match(name, PUBLISHED.ignored)}
    assert found.keys() == published.keys() - unused
    for name, tensor in found.items():
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
        np.testing.assert_array_equal(tensor, published[name], err_msg=name)
    assert_same_tree(convert.from_usam(found, model_config()), variables)


@pytest.mark.parametrize("name", ["usam", "sam_s"])
def test_from_published_inverts_to_published(exported, name):
    config = model_config(name=name, variant="smallest", image_size=32, num_classes=5)
    rng = np.random.default_rng(0)
    flat = {
        x.path: rng.normal(size=x.shape).astype(np.float32)
        for x in name_map.model_leaves(config, NameMap(""))
    }
    variables = traverse_util.unflatten_dict(flat)
    assert_same_tree(
        convert.from_published(load.to_published(variables, config), config), variables
    )
