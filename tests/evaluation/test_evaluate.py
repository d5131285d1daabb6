"""Evaluation of a checkpoint: prompt modes, pooled and per-case metrics, and reports."""

import csv
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from conftest import phantom_config, save_run

from usam_jax.data import prompt_modes, splits
from usam_jax.data.packed import prepare
from usam_jax.data.pixels import unfit_square
from usam_jax.data.splits import Subset
from usam_jax.evaluation import evaluate, inference, pixel_counts
from usam_jax.evaluation.case_metrics import score_case
from usam_jax.evaluation.case_scorer import CaseScorer
from usam_jax.evaluation.report import tables
from usam_jax.evaluation.report.slices import choose_rows, pick_strip, rank_cases
from usam_jax.io import nifti
from usam_jax.models import Prompts, init_variables, make_model
from usam_jax.utils.errors import DataError, UsageError, WeightsError
from usam_jax.utils.mesh import make_mesh

ALL = ("none", "points1", "points3", "points5", "box", "points2_box")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """The small config with all prompt modes, its packed phantoms, and an untrained model."""
    folder = tmp_path_factory.mktemp("packed")
    config = phantom_config(**{"data.packed_dir": str(folder), "data.num_patients": (3, 3)})
    config.data.slices_per_patient = 7
    config.eval.prompts, config.eval.prompt_jitter_px = ALL, (4.0, 12.0)
    packed = prepare.prepare(config.data)
    model = make_model(config.model)
    return config, packed, model, init_variables(config.model, jax.random.key(0))


def predict(phantoms, num_devices: int):
    config, packed, model, variables = phantoms
    mesh = make_mesh(num_devices)
    halves = inference.make_forward(model, mesh)
    modes = [prompt_modes.main_mode(config), *prompt_modes.other_modes(config)]
    part = Subset("test", np.arange(21))  # neither a multiple of the batch of 8 nor of 8 devices
    network = evaluate.Model(halves, jax.tree.map(np.asarray, variables), mesh)
    return evaluate.predict_subset(network, packed, part, config, modes), halves


@pytest.fixture(scope="module")
def one_device(phantoms):
    return predict(phantoms, 1)


def test_predict_equals_the_model_alone_for_one_prompt_mode(phantoms, one_device):
    config, packed, model, variables = phantoms
    done, halves = one_device
    assert halves.encode._cache_size() == halves.decode._cache_size() == 1
    assert set(done.counts) == {*ALL, "points3", "points3_moved4", "points3_moved12"}
    modes = {x.name: x for x in prompt_modes.other_modes(config)}
    apply, mode = jax.jit(model.apply), modes["points1"]  # fewer points than there is room for
    for row in (3, 10):
        image, label = packed.images("test")[row], packed.labels("test")[row]
        made = mode(label, row, mode.num_points)
        points, labels = (jnp.asarray(made[x])[None] for x in ("points_xy", "point_labels"))
        logits = apply(
            variables, jnp.asarray(image, jnp.float32)[None] / 255, Prompts(points, labels)
        )
        expected = np.asarray(logits.argmax(-1))[0]
        for c in range(3):
            p, y = expected == c, label == c
            true = [(p & y).sum(), (p & ~y).sum(), (~p & y).sum()]
            # Rounding may change a pixel or two at which two classes have nearly equal logits.
            assert np.abs(done.counts["points1"][row][c] - true).max() <= 2


@pytest.mark.parametrize("name", ALL)
def test_prompt_mode_pads_its_prompts_to_one_shape(phantoms, name):
    config, packed, *_ = phantoms
    config = config.copy_and_resolve_references()
    config.prompts.kind = "none"
    config.eval.prompts = (*ALL, "points3")
    modes = {"none": prompt_modes.main_mode(config)}
    modes |= {x.name: x for x in prompt_modes.other_modes(config)}
    label = packed.labels("test")[10]
    made = modes[name](label, 10, 12)
    given = made["prompts_given"]
    assert given.shape == (13,) and made["points_xy"].shape == (12, 2)
    alone = modes[name].add_prompts({"label": label}, None)
    assert given[-1] == ("boxes_xyxy" in alone) == ("box" in name)
    np.testing.assert_array_equal(
        made["points_xy"][given[:-1]], alone.get("points_xy", np.zeros((0, 2)))
    )
    np.testing.assert_array_equal(
        made["point_labels"][given[:-1]], alone.get("point_labels", np.zeros(0))
    )
    np.testing.assert_array_equal(made["boxes_xyxy"], alone.get("boxes_xyxy", np.zeros(4)))


def test_pooled_dice_equals_a_count_over_all_slices(phantoms, one_device):
    config, packed, _, variables = phantoms
    done, halves = one_device
    on_eight, other_halves = predict(phantoms, 8)
    assert other_halves.encode._cache_size() == other_halves.decode._cache_size() == 1
    modes = [prompt_modes.main_mode(config), *prompt_modes.other_modes(config)]
    modes += prompt_modes.jittered_modes(config)
    part = Subset("test", np.arange(21))
    outcomes = inference.stream(halves, variables, packed, part, modes, config, make_mesh(1), "")
    batches = [
        {name: np.asarray(x.predicted)[: len(rows)] for name, x in found.items()}
        for rows, found in outcomes
    ]
    truth = packed.labels("test")
    mean_dice = {}
    for name, counts in done.counts.items():
        predicted = np.concatenate([x[name] for x in batches])
        assert predicted.shape == truth.shape
        np.testing.assert_array_equal(counts, on_eight.counts[name])
        pooled = pixel_counts.pooled_scores(counts, tuple(config.data.classes))
        for c, of_class in enumerate(config.data.classes[1:], start=1):
            p, y = predicted == c, truth == c
            assert pooled.dice[of_class] == pytest.approx(2 * (p & y).sum() / (p.sum() + y.sum()))
            assert pooled.iou[of_class] == pytest.approx((p & y).sum() / (p | y).sum())
            if name in done.results:  # the counts of the cases add up to the pooled counts
                cases = [x.scores[c - 1] for x in done.results[name]]
                assert sum(x["TP"] for x in cases) == (p & y).sum()
                assert sum(x["FP"] for x in cases) == (p & ~y).sum()
                assert sum(x["FN"] for x in cases) == (~p & y).sum()
        mean_dice[name] = pooled.mean_dice
    assert len(set(mean_dice.values())) > 4  # otherwise swapped prompts would go unnoticed
    assert done.results == on_eight.results  # every metric of every case, in order
    assert [x.name for x in done.results["none"]] == [x["name"] for x in packed.cases("test")]


def test_jittered_modes_displace_points_reproducibly(phantoms):
    config, packed, *_ = phantoms
    near, far = prompt_modes.jittered_modes(config)
    row = int(np.argmax([x.any() for x in packed.labels("test")]))
    label = packed.labels("test")[row]
    exact = prompt_modes.main_mode(config)(label, row, 6)["points_xy"]
    a, b = near(label, row, 6), near(label, row, 6)
    np.testing.assert_array_equal(a["points_xy"], b["points_xy"])
    assert a["prompts_given"].tolist() == [True] * 6 + [False]
    boxed = dataclasses.replace(near, add_prompts=dataclasses.replace(near.add_prompts, kind="box"))
    box = dataclasses.replace(boxed, jitter_px=0.0)(label, row, 0)["boxes_xyxy"]
    shifted = np.linalg.norm((boxed(label, row, 0)["boxes_xyxy"] - box).reshape(2, 2), axis=-1)
    assert (shifted > 0).all() and (shifted <= 4.001).all()
    inside = ((a["points_xy"] > 0) & (a["points_xy"] < 31)).all(-1)
    moved = np.linalg.norm(a["points_xy"] - exact, axis=-1)
    np.testing.assert_allclose(moved[inside], 4, rtol=1e-5)
    assert inside.any() and not np.array_equal(far(label, row, 6)["points_xy"], a["points_xy"])


def test_case_scorer_scores_volumes_on_their_own_voxels(nnunet, monkeypatch):
    root, config = nnunet
    config.model.image_size = 32
    for path in (*root.glob("imagesTs/*.nii.gz"), *root.glob("labelsTs/*.nii.gz")):
        image = nibabel.load(path)
        stretched = image.affine @ np.diag([1.3, 0.9, 1.6, 1])  # three different spacings
        voxels = np.asanyarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(voxels, stretched), path)
    packed = prepare.prepare(config.data)
    scoring = evaluate.make_scoring(config)
    labels = np.asarray(packed.labels("test"))

    def score_all():
        with CaseScorer(packed, "test", scoring) as scorer:
            for row, label in enumerate(labels):
                scorer.add(row, {"truth": label, "nothing": np.zeros_like(label)})
            return scorer.finish(), scorer.on_source

    results, on_source = score_all()
    assert on_source
    for case, found, missed in zip(
        packed.cases("test"), results["truth"], results["nothing"], strict=True
    ):
        path = config.data.root + f"/labelsTs/{case['name']}.nii.gz"
        assert found.reference_file and found.reference_file.endswith(path.split("/")[-1])
        truth = nifti.read_labels(type(packed.folder)(path), 3)
        voxel_ml = np.prod(nifti.read_geometry(type(packed.folder)(path)).spacing_mm) / 1000
        geometry = nifti.read_geometry(type(packed.folder)(path))
        assert len({round(x, 3) for x in geometry.spacing_mm}) == 3
        rows = slice(case["row"], case["row"] + case["num_slices"])
        _, *pixel_mm = geometry.spacing_mm
        back = [unfit_square(x, truth.shape[1:], tuple(pixel_mm)) for x in labels[rows]]
        assert found.scores == score_case(truth, np.stack(back), geometry.spacing_mm, scoring)
        for c, score in enumerate(found.scores, start=1):
            assert score["n_ref"] == (truth == c).sum()
            assert score["reference_volume"] == pytest.approx((truth == c).sum() * voxel_ml)
            if score["n_ref"] > 100:
                assert 0.7 < score["Dice"] < 1  # resampled from 48 pixels to 32 and back
        assert {x["status"] for x in missed.scores} <= {"missed", "absent"}
    label_file = type(packed.folder)(packed.cases("test")[0]["label_file"])
    os.utime(label_file, (1, 1))  # the same content at another time
    assert score_all()[1]
    label_file.write_bytes(label_file.read_bytes() + b" ")
    with pytest.raises(DataError, match="another content than when it was packed"):
        score_all()
    label_file.unlink()
    results, on_source = score_all()
    assert not on_source  # all cases on the packed slices, none on its label file
    assert {s["Dice"] for x in results["truth"] for s in x.scores} <= {1.0, None}


@pytest.fixture
def run(phantoms, tmp_path):
    """A workdir as a run leaves it, with an untrained model."""
    config, packed, _, variables = phantoms
    config = config.copy_and_resolve_references()
    save_run(tmp_path, config, variables, packed)
    return config, tmp_path


def test_evaluate_workdir_writes_files_table_and_report(run, one_device, capsys):
    done_modes = one_device[0].results
    config, workdir = run
    summary = evaluate.evaluate_workdir(config, workdir)
    printed = capsys.readouterr().out
    folder = workdir / "eval" / "test_points3"
    saved = json.loads((folder / "summary.json").read_text())
    assert saved == json.loads(json.dumps(summary))
    # The fields of nnU-Net's summary.
    assert {"metric_per_case", "mean", "foreground_mean"} <= saved.keys()
    of_case = saved["metric_per_case"][0]
    assert {"metrics", "prediction_file", "reference_file"} <= of_case.keys()
    counted = {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}
    assert counted <= of_case["metrics"]["1"].keys() and counted <= saved["mean"]["2"].keys()
    assert saved["distance_unit"] == "mm" and saved["num_cases"] == 3
    assert saved["trained_with"] == saved["prompts"]
    with (folder / "per_case.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"case", "class", "metric", "value", "status"}
    dice = {(x["case"], x["class"]): x["value"] for x in rows if x["metric"] == "Dice"}
    expected = of_case["metrics"]["2"]["Dice"]
    found = dice[of_case["case"], "tumour"]
    assert (float(found) if found else None) == expected
    for name in ("report.html", "predictions.png", "boxes.png", "sizes.png", "noise.png"):
        assert (folder / name).stat().st_size > 5000, name
    assert len(list((folder / "cases").iterdir())) == 3
    other = json.loads((workdir / "eval" / "test_none" / "summary.json").read_text())
    assert other["prompts"] == "none (automatic)"
    assert other["pooled"]["dice"] == saved["other_prompts"]["none"]["dice"]
    assert [x["pixels"] for x in saved["noise"]] == [0.0, 4.0, 12.0]
    for name, counts in one_device[0].counts.items():
        pooled = evaluate.pooled_metrics(counts, tuple(config.data.classes))
        if name in done_modes:
            of_mode = json.loads((workdir / "eval" / f"test_{name}" / "summary.json").read_text())
            assert of_mode["pooled"] == pooled
            for c, of_class in enumerate(config.data.classes[1:], start=1):
                found = [x["metrics"][str(c)]["TP"] for x in of_mode["metric_per_case"]]
                assert sum(found) == pooled["pixels"][of_class]["true_positive"]
            row = next(x for x in printed.splitlines() if of_mode["prompts"] in x and "│" in x)
            assert f"{100 * pooled['dice']['mean']:.2f}" in row
        else:
            moved = float(name.rpartition("moved")[2])
            (jittered,) = [x for x in saved["noise"] if x["pixels"] == moved]
            assert jittered["dice"] == pooled["dice"]
    for text in ("5 points per class from the ground truth", "none (automatic)", "false"):
        assert text in printed
    assert "paper" not in printed  # the paper has no results on phantoms


def test_evaluate_workdir_rejects_other_classes(run):
    config, workdir = run
    config.data.classes = ("background", "tumour", "normal rectum")
    with pytest.raises(WeightsError, match="was trained with the classes"):
        evaluate.evaluate_workdir(config, workdir)


def test_whole_cases_adds_the_untrained_slices_of_cases(phantoms):
    config, packed, *_ = phantoms
    data = config.data.copy_and_resolve_references()
    data.train_on_empty = False
    part = splits.split_subsets(packed, data, "val")["train"]
    whole = splits.whole_cases(packed, part)
    assert len(part) < len(whole) == 14
    assert set(part.rows) <= set(whole.rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompts", ("clicks",), "got 'clicks', expected none, box, pointsN"),
        ("prompt_jitter_px", (0.0,), "expected pixels above 0"),
    ],
)
def test_prompt_modes_name_invalid_field(phantoms, field, value, message):
    config = phantoms[0].copy_and_resolve_references()
    config.eval[field] = value
    with pytest.raises(UsageError, match=message):
        prompt_modes.other_modes(config) + prompt_modes.jittered_modes(config)


def test_choose_rows_picks_largest_error_and_largest_tumour(phantoms, one_device):
    config, packed, *_ = phantoms
    done, _ = one_device
    results, cases = done.results["points3"], packed.cases("test")
    counts = dict(enumerate(done.counts["points3"]))
    chosen = choose_rows(results, cases, counts, evaluate.make_scoring(config))
    labels = packed.labels("test")
    for number, case in enumerate(cases):
        rows = range(case["row"], case["row"] + case["num_slices"])
        why = {row: why for row, (of, why) in chosen.items() if of == number}
        assert set(why) <= set(rows)
        errors = {row: counts[row][1:, 1:].sum() for row in rows}
        (worst,) = [row for row, text in why.items() if "error" in text]
        assert errors[worst] == max(errors.values())
        areas = {row: (labels[row] == 2).sum() for row in rows}
        if max(areas.values()):
            (largest,) = [row for row, text in why.items() if "tumour" in text]
            assert areas[largest] == max(areas.values())
    ranked = rank_cases(results)
    strip = pick_strip(ranked)
    assert next(iter(strip)) == ranked[0] and strip[ranked[0]] == "worst"
    assert rank_cases([dataclasses.replace(x, scores=[]) for x in results]) == [0, 1, 2]


def test_pooled_table_shows_paper_rows_on_its_data_only(capsys):
    from configs import care, word
    from usam_jax.evaluation import published_results

    for config, kind, means in (
        (care, "care", [65.98, 69.28, 70.79, 73.38, 73.19]),
        (word, "word", [77.28, 84.83, 85.44]),
    ):
        classes = tuple(config.get_config().data.classes)
        rows = published_results.rows_for(kind, classes, "test")
        assert [x["dice"]["mean"] for x in rows] == means
        # Printed values are rounded; the mean of one row of the paper's Table 3 is off by 0.06.
        for row in rows:
            mean = np.mean([x for name, x in row["dice"].items() if name != "mean"])
            assert mean == pytest.approx(row["dice"]["mean"], abs=0.065)
        metrics = dict.fromkeys([*classes[1:], "mean"], 0.5)
        summary = {
            "split": "test",
            "num_slices": 1,
            "prompts": "none (automatic)",
            "pooled": {"dice": metrics, "iou": metrics},
            "other_prompts": {},
            "paper": rows,
        }
        tables.print_wide(tables.pooled_table(summary))
        printed = capsys.readouterr().out
        assert "paper:" in printed and f"{means[1]}" in printed
    assert not published_results.rows_for("phantom", ("background", "a", "b"), "test")
    assert not published_results.rows_for("care", ("background", "a"), "test")
    assert not published_results.rows_for("care", ("background", "a", "b"), "val")
