"""Is it right on this device: the published values, and the same bits on every run."""

import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import training
from benchmarks.accelerator.context import STEPS_PER_EPOCH, add, settings
from benchmarks.accelerator.model import make_config
from benchmarks.results import ROOT
from usam_jax import convert
from usam_jax.models import Prompts, make_model
from usam_jax.models import make_config as make_model_config
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh, shard_batch

GOLDEN = "tests/models/test_golden.py"
GOLDEN_TESTS = (  # the most telling first
    "test_care_stages_equal_the_published_ones[points]",
    "test_sgd_steps_equal_the_published_ones",
    "test_adamw_steps_equal_the_published_ones",
    "test_care_stages_equal_the_published_ones[no_prompt]",
    "test_care_stages_equal_the_published_ones[box]",
    "test_care_stages_equal_the_published_ones[points_box]",
    "test_word_stages_equal_the_published_ones",
)
PRECISIONS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))


def precision() -> None:
    """Distance of the logits from the published ones, by precision of the matrix products."""
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    import recipe

    config = make_model_config("usam")
    variables = convert.from_usam(recipe.state_dict("usam_care"), config)
    images = jnp.asarray(recipe.images(2))
    prompts = Prompts(jnp.asarray(recipe.points(2, 6)), jnp.ones((2, 6), jnp.int32))
    with np.load(recipe.USAM / "care_eval_points.npz") as file:
        golden = dict(file)
    row = list(golden["names"]).index("logits")
    for dtype, product in PRECISIONS[:1] if settings().dry else PRECISIONS:
        config.dtype = dtype
        with jax.default_matmul_precision(product):
            logits = np.asarray(jax.jit(make_model(config).apply)(variables, images, prompts))
        _, sampled = recipe.probe("logits", logits.transpose(0, 3, 1, 2))
        off = float(np.abs(sampled - golden["value"][row]).max())
        counts = [np.bincount(x.ravel(), minlength=3) for x in logits.argmax(-1)]
        changed = np.abs(np.array(counts) - golden["label_counts"]).sum() / 2
        name = f"from the published logits, {dtype} at {product} precision"
        add(
            (f"largest difference {name}", off, ""),
            (f"pixels of other classes, at least, {name}", float(changed), ""),
        )


def golden() -> None:
    """The golden tests on this device, with float32 products at highest precision.

    Raises RuntimeError if one of them fails or does not exist.
    """
    import pytest

    devices = jax.devices()  # before tests/conftest.py, which asks for a CPU
    jax.config.update("jax_default_matmul_precision", "highest")

    class Report:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.failed:
                name = report.nodeid.split("::")[-1]
                add((f"passed on {devices[0].platform}: {name}", float(report.passed), ""))

    options = ["-q", "--tb=short", "-p", "no:cacheprovider"]
    options += ["-o", "addopts=", "-o", "filterwarnings=default"]
    names = GOLDEN_TESTS[:1] if settings().dry else GOLDEN_TESTS
    code = pytest.main([*options, *(f"{GOLDEN}::{x}" for x in names)], plugins=[Report()])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"{GOLDEN}: got {pytest.ExitCode(code).name}, expected OK; see log.txt")


def bits(which: str, _flag: str) -> None:
    """Three steps with train.deterministic: are they bit-identical to those of another process?"""
    jax.config.update("jax_enable_compilation_cache", False)  # each of the two compiles
    config, mesh = make_config("bfloat16", 8), make_mesh(1)
    config.train.deterministic = True
    parts = loop.make_training(config, STEPS_PER_EPOCH, mesh)
    state, batch = parts.start_fn(), shard_batch(training.make_batch(config), mesh)
    losses = []
    for _ in range(3):
        state, values = parts.train_step(state, batch)
        losses.append(float(values["train/loss"]))
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]
    digest = hashlib.sha256(b"".join(leaves)).hexdigest()
    print(which, digest, losses, os.environ.get("XLA_FLAGS"), flush=True)
    (settings().keep / f"bits_{which}.json").write_text(json.dumps([digest, losses]))
    if which == "second":
        other, before = json.loads((settings().keep / "bits_first.json").read_text())
        off = float(np.abs(np.subtract(losses, before)).max())
        add(
            (
                "deterministic: states after 3 steps of two processes equal",
                float(digest == other),
                "",
            ),
            ("deterministic: largest difference of their losses", off, ""),
        )
