"""Speed of the full model in evaluation and training, compared with the machine's limit."""

import importlib.util
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import limits as machine
from benchmarks.limits import FORWARD_FLOP, STEP_FLOP, measure_bandwidth, product_limit, seconds
from benchmarks.results import Row
from configs import care
from usam_jax.data.loader import stack
from usam_jax.data.prompts import make_add_prompts
from usam_jax.models import get, init_variables, make_model, predicted_slices
from usam_jax.models.common.prompts import batch_images
from usam_jax.models.common.registry import input_shape
from usam_jax.training import loop
from usam_jax.utils import console
from usam_jax.utils.mesh import make_mesh, shard_batch

ROUNDS = 15
SETUPS = {  # by backend: dtype and slices per batch
    "cpu": [("float32", 4), ("float32", 8)],
    "gpu": [(x, n) for x in ("bfloat16", "float32") for n in (8, 16, 32, 64)],
}


def measure_limits() -> list[Row]:
    """What the machine reaches in a large matrix product and in memory bandwidth."""
    dtypes = dict.fromkeys(x for x, _ in SETUPS[jax.default_backend()])
    limits = [
        (f"limit: a large matrix product, {x}", product_limit(x)(machine.LIMIT_S) / 1e9, "GFLOP/s")
        for x in dtypes
    ]
    return [*limits, ("limit: memory, read and written", measure_bandwidth() / 1e9, "GB/s")]


def setups() -> Iterator[tuple[ConfigDict, str]]:
    """Configs to measure on this backend, with their names."""
    for dtype, batch in SETUPS[jax.default_backend()]:
        config = care.get_config()
        config.init_from, config.model.dtype = "", dtype
        config.train.batch_size = config.eval.batch_size = batch
        yield config, f"ViT-B, {dtype}, batch {batch}"


def rate(
    run: Callable[[], object], work: float, config: ConfigDict, name: str, rounds: int = ROUNDS
) -> list[Row]:
    """Slices per second, and the share of the limit, which is measured in turn with each run.

    `work` is in FLOP per slice.
    """
    limit = product_limit(config.model.dtype)
    batch = config.train.batch_size * predicted_slices(config.model)
    pairs = []
    with console.Progress(name, rounds, "rounds") as bar:
        for _ in range(rounds):
            took = seconds(run)
            pairs.append((took, limit(took)))
            bar.advance()
    slices = statistics.median(batch / s for s, _ in pairs)
    share = statistics.median(work * batch / s / most for s, most in pairs)
    return [(name, slices, "slices/s"), (f"the same, of a matrix product: {name}", share, "")]


def measure_eval() -> list[Row]:
    """The forward pass without prompts, and SAM's encoder compared with torch."""
    rows = measure_limits()
    for config, name in setups():
        rows += measure_forward(config, f"evaluating {name}")
    return rows + measure_peers()


def measure_forward(
    config: ConfigDict, name: str, work: float = FORWARD_FLOP, rounds: int = ROUNDS
) -> list[Row]:
    """Time and memory of the forward pass, of `work` FLOP per slice."""
    model = make_model(config.model)
    variables = init_variables(config.model, jax.random.key(0))
    images = make_batch(config)["image"]
    forward = jax.jit(lambda v, x: model.apply(v, batch_images(x), None))
    compiled = forward.lower(variables, images).compile()
    run = partial(compiled, variables, images)
    jax.block_until_ready(run())
    return rate(run, work, config, name, rounds) + memory(compiled, name)


def measure_train() -> list[Row]:
    """A training step in each setup."""
    rows = measure_limits()
    for config, name in setups():
        rows += measure_step(config, f"training {name}")
    return rows


def measure_step(
    config: ConfigDict, name: str, work: float = STEP_FLOP, rounds: int = ROUNDS
) -> list[Row]:
    """Compilation, time and memory of a training step, of `work` FLOP per slice."""
    mesh = make_mesh(1)
    training = loop.make_training(config, 100, mesh)
    batch, state = shard_batch(make_batch(config), mesh), training.start_fn()
    start = time.perf_counter()
    lowered = training.train_step.lower(state, batch)  # type: ignore[attr-defined]
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()

    def step() -> Any:
        nonlocal state
        state, values = compiled(state, batch)
        return values

    jax.block_until_ready(step())
    return [
        *rate(step, work, config, name, rounds),
        *memory(compiled, name),
        (f"tracing for {name}", middle - start, "s"),
        (f"compiling for {name}", end - middle, "s"),
    ]


def make_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """A batch of noise, with the prompts of `config.prompts` if the network takes any."""
    rng, spec = np.random.default_rng(0), get(config.model.name)
    shape = input_shape(config.model)
    labelled = shape if spec.dims == 3 else shape[:2]
    item = {
        "image": rng.integers(0, 256, shape).astype(np.uint8),
        "label": rng.integers(0, config.model.num_classes, labelled).astype(np.uint8),
        "index": np.int32(0),
    }
    if spec.promptable:
        item = make_add_prompts(config)(item, rng)
    return stack([item] * config.train.batch_size)


def memory(compiled: Any, name: str) -> list[Row]:
    """Memory of the program without and with its arguments, and the process's peak so far."""
    found = compiled.memory_analysis()
    temporary = found.temp_size_in_bytes
    whole = found.argument_size_in_bytes + found.output_size_in_bytes + temporary
    whole -= found.alias_size_in_bytes
    if jax.default_backend() == "cpu":
        where, peak = "process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        where, peak = "device", jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return [
        (f"temporary memory of {name}", temporary / 1e9, "GB"),
        (f"total memory of {name}", whole / 1e9, "GB"),
        (f"peak of the {where} up to {name}", peak / 1e9, "GB"),
    ]


def measure_peers() -> list[Row]:
    """SAM's image encoder at 224x224 in turn with that of transformers, if torch is installed."""
    if jax.default_backend() != "cpu":
        console.info("SAM's encoder in torch is measured on CPUs only")
        return []
    if missing := [x for x in ("torch", "transformers") if not importlib.util.find_spec(x)]:
        console.info(
            f"SAM's encoder is not compared with torch; not installed: {', '.join(missing)}"
        )
        return []
    import torch
    import transformers

    batch = 4
    config = care.get_config("sam_s").model
    model = make_model(config)
    variables = init_variables(config, jax.random.key(0))
    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode"))
    grey = np.random.default_rng(0).random((batch, 224, 224), np.float32)
    vision = transformers.SamVisionConfig(image_size=224)
    peer = transformers.SamVisionModel(vision).eval()
    colour = torch.from_numpy(np.repeat(grey[:, None], 3, 1))
    peers = {"eager": peer, "torch.compile": torch.compile(peer)}
    versions = f"transformers {transformers.__version__} in torch {torch.__version__}"
    rows = []
    with torch.inference_mode():
        for name, module in peers.items():
            module(colour)
            pairs = []
            for _ in range(ROUNDS):
                ours = seconds(lambda: encode(variables, grey))
                pairs.append((ours, seconds(lambda: module(colour).last_hidden_state)))  # noqa: B023
            ours, theirs = (batch / statistics.median(x) for x in zip(*pairs[1:], strict=True))
            times = statistics.median(b / a for a, b in pairs[1:])
            rows += [
                (
                    f"SAM's ViT-B encoder at 224x224, batch 4, compared with {name}",
                    ours,
                    "slices/s",
                ),
                (f"the same, {versions}, {name}", theirs, "slices/s"),
                (f"ratio of the two, {name}", times, "times"),
            ]
    return rows
