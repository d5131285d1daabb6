"""Measurements of the model, by the other benchmarks and as calls in a row."""

import contextlib
import functools
import gzip
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import data, epochs, limits, prediction, training
from benchmarks.accelerator import profile_table
from benchmarks.accelerator.context import (
    PEAK,
    STEPS_PER_EPOCH,
    StopAll,
    add,
    quiet,
    seconds_in_a_row,
    settings,
)
from benchmarks.limits import FORWARD_FLOP, PART_FLOP, STEP_FLOP
from benchmarks.results import ROOT, describe_device, describe_versions
from configs import care
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.phantoms import anatomy
from usam_jax.data.preprocessing import make_preparation
from usam_jax.data.prompt_modes import jittered_modes, main_mode, other_modes
from usam_jax.data.splits import Subset
from usam_jax.evaluation import inference
from usam_jax.models import init_variables, make_model
from usam_jax.models.common.prompts import batch_images
from usam_jax.predict import Predictor
from usam_jax.predict.model import NO_CLICKS, Network
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh, shard_batch

ENCODER_FLOP = PART_FLOP["image encoder"]
TEST_SLICES = 6424  # of CARE's test set
PROFILED_STEPS = 5
PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("torch", "triton", "transformers", "timm", "nvidia-cudnn-cu13", "nvidia-cublas"),
    "opencv-python-headless",
)
profiled: dict[str, Any] = {}  # the step that `profile` looks at, kept by `train`


def make_config(dtype: str, batch: str | int, *options: str, network: str = "usam") -> ConfigDict:
    """configs/care.py without weights.

    `options` may contain "remat".
    """
    run = settings()
    config = care.get_config(network)
    config.init_from, config.model.dtype, config.model.remat = "", dtype, "remat" in options
    config.train.batch_size = config.eval.batch_size = min(int(batch), 2) if run.dry else int(batch)
    return config


def name_of(dtype: str, batch: str | int, *options: str) -> str:
    return ", ".join(["ViT-B", dtype, f"batch {batch}", *options])


def add_speed(name: str, took: float, config: ConfigDict, work: float) -> None:
    """Slices/s of calls in a row, and their share of the data sheet's peak (MFU)."""
    batch = config.train.batch_size
    add(
        (f"{name}, in a row", batch / took, "slices/s"),
        (f"{name}, a call in a row", took * 1e3, "ms"),
        (f"{name}, of the data sheet's peak", work * batch / took / PEAK[config.model.dtype], ""),
    )


def compile_timed(lower: Callable[[], Any], name: str) -> Any:
    """The compiled program.

    Adds the times of tracing and of compiling or loading it.
    """
    cache = settings().keep / "jax"
    before = len(list(cache.glob("*")))
    start = time.perf_counter()
    lowered = lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    fresh = len(list(cache.glob("*"))) > before
    add(
        (f"tracing for {name}", middle - start, "s"),
        (f"compiling for {name}" if fresh else f"from the cache, {name}", end - middle, "s"),
    )
    return compiled


def device() -> None:
    """Describe the machine in environment.txt. Raises StopAll if JAX has no GPU."""
    run = settings()
    lines = [f"python {platform.python_version()}, {os.cpu_count()} cores, {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} -")
    lines += [f"XLA_FLAGS {os.environ.get('XLA_FLAGS', '')}", str(jax.devices())]
    for command in (
        ["nvidia-smi"],
        ["nvidia-smi", "-q", "-d", "CLOCK,POWER,TEMPERATURE"],
        ["lscpu"],
    ):
        try:
            lines.append(subprocess.check_output(command, text=True, timeout=20))
        except (OSError, subprocess.SubprocessError) as error:
            lines.append(f"{command[0]}: {error}")
    (run.out / "environment.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[:24]), flush=True)
    if not run.dry and jax.default_backend() != "gpu":
        raise StopAll(f"JAX: got {jax.default_backend()}, expected gpu. --dry runs on a CPU")
    text = [describe_device(), describe_versions()]
    (run.keep / "device.json").write_text(json.dumps(text))
    stats = jax.local_devices()[0].memory_stats() or {}
    add(("memory that JAX may use of the device", stats.get("bytes_limit", 0) / 1e9, "GB"))


def measure_limits() -> None:
    """Matrix products in bfloat16, TensorFloat-32 and float32, and memory bandwidth."""

    def product(dtype: str) -> float:
        return limits.make_product_limit(dtype)(limits.LIMIT_S) / 1e9

    with quiet():
        for dtype in ("bfloat16", "float32"):
            add((f"limit: a large matrix product, {dtype}", product(dtype), "GFLOP/s"))
        with jax.default_matmul_precision("highest"):
            name = "limit: a large matrix product, float32 at highest precision"
            add((name, product("float32"), "GFLOP/s"))
        found = limits.measure_bandwidth()
        add(("limit: memory, read and written", found / 1e9, "GB/s"))


def train(dtype: str, batch: str, *options: str, label: str = "") -> None:
    """A training step: compilation, memory, speed step by step and in a row."""
    profiled.clear()
    config, mesh = make_config(dtype, batch, *options), make_mesh(1)
    name = f"training {name_of(dtype, batch, *options)}{label}"
    parts = loop.make_training(config, STEPS_PER_EPOCH, mesh)
    given = shard_batch(training.make_batch(config), mesh)
    start = time.perf_counter()
    state = jax.block_until_ready(parts.start_fn())
    add((f"the state before the first step, {name}", time.perf_counter() - start, "s"))
    main = (dtype, batch, *options, label) == ("bfloat16", "32", "")
    step_fn: Any = parts.train_step
    with quiet() if main else contextlib.nullcontext():  # the time of compiling is a result
        compiled = compile_timed(lambda: step_fn.lower(state, given), name)
    add(*training.memory(compiled, name))
    if main:
        with gzip.open(settings().out / "train_step.hlo.txt.gz", "wt") as file:
            file.write(compiled.as_text())

    def step() -> Any:
        nonlocal state
        state, values = compiled(state, given)
        return values

    first = jax.block_until_ready(step())
    add((f"loss of the first step, {name}", float(first["train/loss"]), ""))
    with quiet():
        add(*training.rate(step, STEP_FLOP, config, name))
        add_speed(name, seconds_in_a_row(step, jax.block_until_ready), config, STEP_FLOP)
        start = time.perf_counter()
        for _ in range(10):
            found = step()
        sent = time.perf_counter() - start
        jax.block_until_ready(found)
        add((f"{name}, the host's time to send a step", sent / 10 * 1e3, "ms"))
    if main:
        profiled.update(step=step, compiled=compiled, name=name)


def profile() -> None:
    """Where the step's time goes: profile.csv, profile.png, trace.json.gz."""
    if not profiled:
        train("bfloat16", "32")
    step, name = profiled["step"], profiled["name"]
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with quiet():
            jax.block_until_ready(step())
            jax.profiler.start_trace(folder, profiler_options=options)
            start = time.perf_counter()
            for _ in range(PROFILED_STEPS):
                found = step()
            jax.block_until_ready(found)
            took = (time.perf_counter() - start) / PROFILED_STEPS
            jax.profiler.stop_trace()
        add((f"profile: a step, {name}", took * 1e3, "ms"))
        text = profiled["compiled"].as_text()
        profile_table.report(pathlib.Path(folder), text, PROFILED_STEPS, took, name)


def evaluate(dtype: str, batch: str) -> None:
    """The forward pass without prompts."""
    profiled.clear()
    config, name = make_config(dtype, batch), f"evaluating {name_of(dtype, batch)}"
    model = make_model(config.model)
    variables = init_variables(config.model, jax.random.key(0))
    images = jnp.asarray(training.make_batch(config)["image"])
    forward = jax.jit(lambda v, x: model.apply(v, batch_images(x), None))
    compiled = compile_timed(lambda: forward.lower(variables, images), name)

    def run() -> Any:
        return compiled(variables, images)

    jax.block_until_ready(run())
    with quiet():
        add(*training.rate(run, FORWARD_FLOP, config, name))
        add_speed(name, seconds_in_a_row(run, jax.block_until_ready), config, FORWARD_FLOP)
    add(*training.memory(compiled, name))


def encoder(dtype: str, batch: str) -> None:
    """SAM's image encoder alone, with and without gradients, as `peer` measures it in torch."""
    profiled.clear()
    config = make_config(dtype, batch, network="sam_s")
    model = make_model(config.model)
    variables = init_variables(config.model, jax.random.key(0))
    size = config.model.image_size
    images = jax.random.uniform(jax.random.key(1), (config.train.batch_size, size, size))

    def forward(params: Any, x: Any) -> Any:
        features: Any = model.apply({**variables, "params": params}, x, method="encode")
        return features.embedding

    shape = jax.eval_shape(forward, variables["params"], images).shape
    above = jax.random.normal(jax.random.key(2), shape)

    def total(params: Any, x: Any) -> Any:
        return (forward(params, x).astype(jnp.float32) * above).sum()

    kinds: dict[str, tuple[Any, float]] = {
        "": (forward, ENCODER_FLOP),
        ", with gradients": (jax.grad(total), 3 * ENCODER_FLOP),
    }
    for kind, (function, work) in kinds.items():
        name = f"SAM's ViT-B encoder at 224x224, {dtype}, batch {batch}{kind}"
        program = jax.jit(function)
        compiled = compile_timed(
            functools.partial(program.lower, variables["params"], images), name
        )
        with quiet():
            took = seconds_in_a_row(
                functools.partial(compiled, variables["params"], images), jax.block_until_ready
            )
        add_speed(name, took, config, work)


def pipeline(dtype: str, batch: str) -> None:
    """Training steps fed by the real pipeline, and the share of the time that they wait for it."""
    profiled.clear()
    config, name = make_config(dtype, batch), name_of(dtype, batch)
    with quiet():
        add(*epochs.measure_epochs([(config, name)]))


def click(dtype: str) -> None:
    """A click after set_image, and encoding a slice."""
    profiled.clear()
    config = make_config(dtype, 1)
    model, saved = make_model(config.model), config.to_dict()
    variables = init_variables(config.model, jax.random.key(0))
    classes = tuple(config.data.classes)
    network = Network(model, variables, make_preparation(saved, "nnunet"), classes, saved, 0)
    size = prediction.SIZE
    hu = anatomy.make_patient(0, 0, size, 2).image.astype(np.int16)
    predictor = Predictor(network)
    name = f"ViT-B, {size}x{size}, {dtype}"

    def set_slice() -> Any:
        return predictor.encode_slice(hu[0]).features

    jax.block_until_ready(set_slice())
    with quiet():
        clicks = prediction.measure_clicks(predictor, hu[0])
        encoding = [limits.seconds(set_slice) for _ in range(5)]
        features = predictor.encode_slice(hu[0]).features
        decoding = seconds_in_a_row(
            lambda: network.decode(features, [NO_CLICKS]), jax.block_until_ready, 0.3
        )
    add(
        (f"a click after set_image, {name}, median", float(np.median(clicks)), "s"),
        (f"of that the decoder, {name}", decoding, "s"),
        (f"set_slice, {name}, median", float(np.median(encoding)), "s"),
    )


def warm(dtype: str, batch: str) -> None:
    """The first step of a new process, with its program from the cache."""
    name = f"training {name_of(dtype, batch)}"
    command = [sys.executable, "-m", "benchmarks.accelerator.first_step", dtype, batch]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    timeout = 900 if settings().dry else 80
    with quiet():
        command.append(str(time.time()))
        text = subprocess.check_output(
            command, text=True, timeout=timeout, env=environment, cwd=ROOT
        )
    found = json.loads(text.splitlines()[-1])
    add(
        (f"imports, {name}, a new process", found["imports"], "s"),
        (f"the state before the first step, {name}, a new process", found["state"], "s"),
        (f"tracing, {name}, a new process", found["tracing"], "s"),
        (f"the same from the cache, {name}, a new process", found["compiling"], "s"),
        (f"first training step of {name}, from the cache", found["first"], "s"),
    )


def stream(dtype: str, batch: str) -> None:
    """An evaluation with the real pipeline, of 3 points and of all prompts of configs/care.py."""
    profiled.clear()
    with tempfile.TemporaryDirectory() as folder:
        written = data.write_slices(pathlib.Path(folder))
        config = make_config(dtype, batch)
        config.data = written.data
        packed = prepare(config.data)
        mesh, model = make_mesh(1), make_model(config.model)
        variables = init_variables(config.model, jax.random.key(0))
        forward = inference.make_forward(model, mesh)
        size = config.eval.batch_size
        rows = np.resize(
            np.arange(len(packed.slices("train"))), size * (3 if settings().dry else 24)
        )
        modes = [main_mode(config), *other_modes(config), *jittered_modes(config)]
        for kind, count in (("3 points", 1), (f"{len(modes)} prompts", len(modes))):

            def seconds(rows: np.ndarray, count: int = count) -> float:
                start = time.perf_counter()
                for _, found in stream_rows(rows, modes[:count]):
                    jax.device_get(found)
                return time.perf_counter() - start

            def stream_rows(rows: np.ndarray, modes: Any) -> Iterator[Any]:
                part = Subset("train", rows)
                return inference.stream(
                    forward, variables, packed, part, modes, config, mesh, "stream"
                )

            seconds(rows[:size])
            with quiet():
                took = seconds(rows)
            name = f"evaluation with the pipeline, {name_of(dtype, batch)}, {kind}"
            add(
                (name, len(rows) / took, "slices/s"),
                (f"{TEST_SLICES} slices at that rate, {name}", TEST_SLICES * took / len(rows), "s"),
            )
