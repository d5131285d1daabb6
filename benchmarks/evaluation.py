"""Time of an evaluation of the full model, by what it is spent on."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.data import write_slices
from benchmarks.limits import cpu_seconds
from benchmarks.results import Row
from usam_jax.data.packed.format import Packed
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.prompt_modes import jittered_modes, main_mode, other_modes
from usam_jax.data.splits import Subset
from usam_jax.evaluation import evaluate, pixel_counts
from usam_jax.evaluation.case_scorer import CaseResult, CaseScorer
from usam_jax.evaluation.inference import make_forward, stream
from usam_jax.evaluation.report.slices import choose_rows, draw_report, make_report_slice
from usam_jax.evaluation.summary import summarise, write_results
from usam_jax.models import init_variables, make_model
from usam_jax.utils.mesh import make_mesh

NUM_SLICES = 24
BATCH = 8
TEST_SLICES = 6424  # of CARE's test set
SHIFT = 3  # pixels by which the scored labels are shifted


def measure_evaluation() -> list[Row]:
    """Model, scores and report, on slices like CARE's in all prompt modes of configs/care.py."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_slices(pathlib.Path(folder))
        config.eval.batch_size = BATCH
        packed = prepare(config.data)
        model = measure_model(config, packed)
        scoring, results = measure_scoring(config, packed)
        report = cpu_seconds(lambda: write_report(pathlib.Path(folder), config, packed, results))
    rest = scoring + report / TEST_SLICES
    return [
        (
            "evaluating ViT-B with 6 prompt modes and 4 jittered, the model",
            model,
            "s of CPU a slice",
        ),
        ("the same, scores of the cases", scoring, "s of CPU a slice"),
        ("the same, pictures and report of 40 cases", report, "s of CPU"),
        (f"share of the model in evaluating {TEST_SLICES} slices", model / (model + rest), ""),
    ]


def measure_model(config: ConfigDict, packed: Packed) -> float:
    """CPU seconds per slice of the model in all prompt modes."""
    mesh, network = make_mesh(1), make_model(config.model)
    variables, forward = (
        init_variables(config.model, jax.random.key(0)),
        make_forward(network, mesh),
    )
    modes = [main_mode(config), *other_modes(config), *jittered_modes(config)]

    def run(num_slices: int) -> None:
        part = Subset("train", np.arange(num_slices))
        for _, found in stream(forward, variables, packed, part, modes, config, mesh, "model"):
            jax.block_until_ready(found)

    run(BATCH)  # compiles
    return cpu_seconds(lambda: run(NUM_SLICES)) / NUM_SLICES


def measure_scoring(config: ConfigDict, packed: Packed) -> tuple[float, list[CaseResult]]:
    """Score slightly shifted labels in each prompt mode.

    CPU seconds per slice, and the results.
    """
    labels = np.roll(packed.labels("train"), SHIFT, 2)
    modes = [x.name for x in (main_mode(config), *other_modes(config))]
    results: dict[str, list[CaseResult]] = {}

    def run() -> None:
        with CaseScorer(packed, "train", evaluate.make_scoring(config)) as scorer:
            for row, label in enumerate(labels):
                scorer.add(row, dict.fromkeys(modes, label))
            results.update(scorer.finish())

    return cpu_seconds(run) / len(labels), results[modes[0]]


def write_report(
    folder: pathlib.Path, config: ConfigDict, packed: Packed, results: list[CaseResult]
) -> None:
    """Write the results and the report of an evaluation of shifted labels."""
    scoring, mode = evaluate.make_scoring(config), main_mode(config)
    labels, shifted = packed.labels("train"), np.roll(packed.labels("train"), SHIFT, 2)
    counts = pixel_counts.count_pixels(
        jnp.asarray(shifted, jnp.int32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(len(labels), bool),
        len(scoring.classes),
    )
    pooled = evaluate.pooled_metrics(np.asarray(counts), scoring.classes)
    chosen = choose_rows(
        results, packed.cases("train"), dict(enumerate(np.asarray(counts))), scoring
    )
    shown = [
        make_report_slice(row, shifted[row], chosen, results, packed, "train", mode)
        for row in sorted(chosen)
    ]
    summary = {
        "workdir": "",
        "checkpoint_step": 0,
        "checkpoint_chosen_on": "val",
        "trained_with": "",
        "data": "",
        "data_fingerprint": "",
        "split": "train",
        "num_slices": len(labels),
        "resolution": "packed",
        "prompts": mode.describe(),
        "automatic": False,
        "pooled": pooled,
        "other_prompts": {},
        "sensitivity": None,
        "clicks": None,
        "noise": [{"pixels": x, **evaluate.without_pixels(pooled)} for x in (0.0, 5.0, 10.0)],
        "paper": [],
        **summarise(results, scoring, in_mm=False),
    }
    write_results(folder, summary)
    draw_report(folder, summary, results, shown, [], scoring)
