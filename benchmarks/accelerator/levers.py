"""Other forms of parts of the training step: what would each bring?

Each form is timed with gradients, and its results are compared with those of the present form.
`try_step` measures the whole step with the forms that were faster and compute the same function.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from benchmarks.accelerator import model, variants
from benchmarks.accelerator.context import NotRun, add, quiet, seconds_in_a_row, settings
from benchmarks.accelerator.variants import changed
from benchmarks.parts import measure_update
from usam_jax import models
from usam_jax.models import init_variables
from usam_jax.models.common.spec import used_groups

FASTER = 1.03  # a form has to be faster by this factor to be taken into the whole step
CLOSE = 0.1  # and its results may differ by this relative distance, in bfloat16


def norm(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return float(sum(jnp.square(x.astype(jnp.float32)).sum() for x in leaves)) ** 0.5


def distance(a: Any, b: Any) -> float:
    """Relative distance of two trees of arrays, each taken as one vector.

    Not per array: the gradient of a bias before BatchNorm consists of rounding errors.
    """
    return norm(jax.tree.map(lambda x, y: x.astype(jnp.float32) - y, a, b)) / norm(b)


def with_gradients(module: Any, inputs: list[Any]) -> tuple[Any, tuple[Any, Any]]:
    """A function that gives output and gradients of a module in training, and its arguments."""
    trained = (True,) if "train" in module.__call__.__annotations__ else ()
    variables = jax.jit(lambda key: module.init(key, *inputs, *trained))(jax.random.key(0))
    params = jax.tree.map(
        lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape),
        variables["params"],
    )
    rest = {x: y for x, y in variables.items() if x != "params"}

    def forward(params: Any, inputs: Any) -> Any:
        given = {"params": params, **rest}
        return module.apply(given, *inputs, *trained, mutable=["batch_stats"])[0]

    above = jax.random.normal(jax.random.key(9), jax.eval_shape(forward, params, inputs).shape)

    def total(params: Any, inputs: Any) -> Any:
        out = forward(params, inputs)
        return (out.astype(jnp.float32) * above).sum(), out

    return jax.grad(total, (0, 1), has_aux=True), (params, inputs)


def chosen_variants() -> dict[str, tuple[str, float]]:
    """By part the fastest form of the same function so far, and its speed-up."""
    path = settings().keep / "levers.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def measure_part(part: str, batch: str) -> None:
    """Milliseconds of a part with gradients in each of its forms."""
    make_case, forms, same = variants.PARTS[part]
    gradients, arguments = with_gradients(
        *make_case(2 if settings().dry else int(batch), settings().dry)
    )
    chosen = chosen_variants()
    first: tuple[float, Any] | None = None
    for form, changes in forms.items():
        name = f"lever, {part}: {form}"
        if "cuDNN" in form and jax.default_backend() != "gpu":
            print(f"{name}: does not run without a GPU", flush=True)
            continue
        try:
            with changed(changes):
                run = jax.jit(lambda *x: gradients(*x)).lower(*arguments).compile()
            found = jax.block_until_ready(run(*arguments))
            with quiet():
                took = seconds_in_a_row(
                    functools.partial(run, *arguments), jax.block_until_ready, 0.3
                )
        except Exception as error:
            if settings().dry:
                raise
            # Whether a form compiles at all on this device is a result too.
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            add((f"{name}, does it run", 0.0, ""))
            continue
        add((f"{name}, with gradients", took * 1e3, "ms"))
        if first is None:
            first = took, found
            continue
        off = max(distance(a, b) for a, b in zip(found, first[1], strict=True))
        add((f"{name}, times as fast", first[0] / took, ""))
        if form in same:
            add((f"{name}, relative difference of results and gradients", off, ""))
            if settings().dry and off > CLOSE:
                raise ValueError(
                    f"{name}: got a relative difference of {off:.3g}, expected {CLOSE}"
                )
            if first[0] / took > chosen.get(part, ("", FASTER))[1] and off < CLOSE:
                chosen[part] = form, first[0] / took
    (settings().keep / "levers.json").write_text(json.dumps(chosen))
    if first is None:
        raise RuntimeError(f"{part}: does not run in its present form")


def try_attention(batch: str) -> None:
    """A transformer block of the image encoder."""
    measure_part("a block of the image encoder", batch)


def try_up_convolution(batch: str) -> None:
    """The last block of the decoder, to full size."""
    measure_part("up1", batch)


def try_batch_norm(batch: str) -> None:
    """A conv unit at full size, 32 channels."""
    measure_part("a conv unit at full size", batch)


def try_update() -> None:
    """AdamW of all parameters, per array and per parameter group.

    Norms of the gradients.
    """
    config = model.make_config("bfloat16", 32)
    params = init_variables(config.model, jax.random.key(0))["params"]
    # Flattened updates cannot be made for a group without parameters.
    used = used_groups(params, models.get(config.model.name))
    with config.unlocked():
        rates = config.optimizer.learning_rates
        config.optimizer.learning_rates = ConfigDict({group: rates[group] for group in used})
    leaves = jax.tree.leaves(params)
    add(("parameters", sum(x.size for x in leaves) / 1e6, "million"))
    add(("arrays of parameters", len(leaves), ""))
    for form, changes in variants.UPDATE.items():
        with changed(changes), quiet():
            took = measure_update(config, params)
        add((f"lever, optimiser's update: {form}", took * 1e3, "ms per step"))
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    norms = jax.jit(
        lambda g: {x: optax.tree.norm(y) for x, y in g.items()} | {"all": optax.tree.norm(g)}
    )
    with quiet():
        took = seconds_in_a_row(lambda: norms(grads), jax.block_until_ready, 0.3)
    add(("norms of the gradients", took * 1e3, "ms per step"))


def try_step(batch: str) -> None:
    """The whole training step with those forms that were faster."""
    chosen = {part: form for part, (form, _) in chosen_variants().items()}
    if settings().dry:
        chosen = variants.DRY_CHOICE
    print("levers:", chosen, flush=True)
    if not chosen:
        raise NotRun(f"no lever was faster by {FASTER - 1:.0%}")
    changes = [x for part, form in chosen.items() for x in variants.PARTS[part][1][form]]
    with changed(changes):
        model.train("bfloat16", batch, label=", with " + "; ".join(chosen.values()))
