"""Collectives and element types of the compiled training and evaluation steps."""

import types

import jax
import numpy as np
import pytest
from conftest import phantom_config

from benchmarks.hlo import (
    QUICK,
    ArrayType,
    Collective,
    bytes_by_kind,
    collectives,
    element_types,
    products,
)
from usam_jax.evaluation.inference import make_forward
from usam_jax.models.common.spec import split_params
from usam_jax.models.usam import SPEC
from usam_jax.training import loop
from usam_jax.utils.mesh import batch_sharding, make_mesh

NUM_POINTS = 6


def abstract_batch(config, mesh) -> dict:
    """Abstract arrays of a batch with any prompts, two slices per device."""
    b, s = 2 * mesh.size, config.model.image_size
    fields = {
        "image": ((b, s, s), np.uint8),
        "label": ((b, s, s), np.uint8),
        "index": ((b,), np.int32),
        "points_xy": ((b, NUM_POINTS, 2), np.float32),
        "point_labels": ((b, NUM_POINTS), np.int32),
        "boxes_xyxy": ((b, 4), np.float32),
        "prompts_given": ((b, NUM_POINTS + 1), np.bool_),
    }
    placed = batch_sharding(mesh)
    return {x: jax.ShapeDtypeStruct(*y, sharding=placed) for x, y in fields.items()}


def lower_step(**changes) -> types.SimpleNamespace:
    """Training step of the small config, lowered for eight devices without computing anything."""
    config, mesh = phantom_config(**changes), make_mesh(8)
    training = loop.make_training(config, 10, mesh)
    batch = abstract_batch(config, mesh)
    lowered = training.train_step.lower(training.target, batch)
    return types.SimpleNamespace(
        config=config, mesh=mesh, model=training.model, state=training.target, lowered=lowered
    )


@pytest.fixture(scope="module")
def replicated_step():
    return lower_step()


def compiled_collectives(step) -> list[Collective]:
    return collectives(step.lowered.compile(compiler_options=QUICK).as_text())


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def trained(params) -> dict:
    return split_params(params, SPEC)[0]


def joined_kernels(step) -> list:
    """Kernels of the transposed convolutions that are joined at this size and of the next ones."""
    blocks = [step.state.params["mask_decoder"][name] for name in ("up1", "up2")]
    return [(x["up"]["kernel"], x["nConvs_0"]["conv"]["kernel"]) for x in blocks]


def most_extra_sums(step) -> int:
    """Most floats that a step may sum over devices in addition to the trained gradients."""
    channels = count(step.state.batch_stats) // 2  # one mean and one variance each
    # Devices sum the gradient of the joined kernel, with its channel of ones, not of both kernels.
    joined = 0
    for up, kernel in joined_kernels(step):
        d, e, f = *up.shape[2:], kernel.shape[-1]
        joined += max(0, 16 * (d + 1) * f - (4 * d * e + e + 9 * e * f))
    # Mean and variance. The backward pass only sums the gradients of scale and bias.
    batch_norm = 2 * channels
    losses = 1 + 3 * step.config.model.num_classes  # cross entropy, Dice's overlap and totals
    return joined + batch_norm + losses


def test_data_parallel_step_sums_only_gradients_and_statistics(replicated_step):
    step = replicated_step
    found = bytes_by_kind(compiled_collectives(step))
    assert found.keys() == {"all-reduce"}
    # The kernel of three equal channels has the gradient of one channel.
    first = step.state.params["backbone"]["inc"]["conv"]["kernel"].shape
    gradients = count(trained(step.state.params)) - 2 * np.prod(first) // 3
    extra = found["all-reduce"] // 4 - gradients
    assert 0 <= extra <= most_extra_sums(step)


def test_fsdp_step_gathers_parameters_and_no_activations():
    step = lower_step(**{"train.fsdp": True})
    found = compiled_collectives(step)
    total = bytes_by_kind(found)
    # The decoder's joined kernels exchange pieces if one of their axes is sharded.
    joined = count(joined_kernels(step))
    assert total.pop("all-to-all", 0) + total.pop("collective-permute", 0) <= 4 * joined
    # XLA:CPU sums a gradient and takes its shard; XLA:GPU makes that a reduce-scatter.
    assert total.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    read = (step.state.params, step.state.batch_stats, step.state.constants)
    shapes = {x.shape for x in jax.tree.leaves(read)}
    gathered = {x.shape for y in found if y.kind == "all-gather" for x in y.arrays}
    assert gathered <= shapes
    # Once for the forward pass and at most once more for the backward pass.
    assert total["all-gather"] <= 2 * 4 * count(read)
    summed = total.get("all-reduce", 0) + total.get("reduce-scatter", 0) * step.mesh.size
    # Norms of sharded gradients: one for each array to check that all are finite, and one for the
    # metric of its parameter group.
    norms = 2 * len(jax.tree.leaves(step.state.params))
    gradients = count(trained(step.state.params))
    # Gradients of joined kernels are summed before and after they are taken apart.
    assert summed <= 4 * (gradients + 2 * joined + most_extra_sums(step) + norms)


@pytest.fixture(scope="module")
def evaluation(replicated_step):
    """Evaluation of one batch, lowered for eight devices."""
    step = replicated_step
    batch = abstract_batch(step.config, step.mesh)
    forward = make_forward(step.model, step.mesh)
    names = ("points_xy", "point_labels", "boxes_xyxy", "prompts_given")
    prompts = {name: batch[name] for name in names}
    valid = jax.ShapeDtypeStruct(batch["index"].shape, np.bool_)

    def evaluate(variables, images, prompts, labels, valid):
        features = forward.encode(variables, images)
        return forward.decode(variables, features, prompts, labels.astype(np.int32), valid)

    variables = step.state.variables()
    return jax.jit(evaluate).lower(variables, batch["image"], prompts, batch["label"], valid)


def test_evaluation_gathers_only_counts_and_classes(evaluation):
    found = collectives(evaluation.compile(compiler_options=QUICK).as_text())
    results = {x.shape for x in jax.tree.leaves(evaluation.out_info)}
    assert {x.kind for x in found} == {"all-gather"}
    assert {y.shape for x in found for y in x.arrays} == results


def test_steps_compute_nothing_in_float64(replicated_step, evaluation):
    for lowered in (replicated_step.lowered, evaluation):
        found = element_types(lowered.as_text())
        assert "f32" in found
        assert not found & {"f64", "i64", "ui64"}


def test_bfloat16_step_multiplies_only_positions_in_float32():
    step = lower_step(**{"model.dtype": "bfloat16"})
    found = products(step.lowered.as_text())
    assert {x.kind for x in found} == {"dot_general", "convolution"}
    matrix = (2, step.model.variant.dim // 2)
    wide = [x for x in found if x.multiplied != ("bf16", "bf16")]
    # Fourier features of points, boxes and the grid: in bfloat16, a position near pixel 224 would
    # be off by half a pixel, and the sine multiplies that error.
    positions = [x for x in wide if x.operands[1].shape == matrix]
    assert len(positions) == 3
    assert [x for x in wide if x not in positions] == []


def test_collectives_reads_tuples_and_counts_async_once():
    text = """
  %a.1 = (f32[16]{0}, /*index=1*/bf16[2,3]{1,0:T(8,128)}) all-reduce(%x, %y), to_apply=%sum
  %b = ((f32[4]{0}), (f32[32]{0})) all-gather-start(%x), metadata={op_name="all-reduce(x"}
  %c = f32[32]{0} all-gather-done(%b)
  %d = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)
  ROOT %e = pred[] all-reduce-start(%z), to_apply=%and
"""
    f32, bf16 = "f32", "bf16"
    assert collectives(text) == [
        Collective("all-reduce", (ArrayType(f32, (16,)), ArrayType(bf16, (2, 3)))),
        Collective("all-gather", (ArrayType(f32, (32,)),)),
        Collective("collective-permute", (ArrayType(f32, (4,)),)),
        Collective("all-reduce", (ArrayType("pred", ()),)),
    ]
    expected = {"all-reduce": 64 + 12 + 1, "all-gather": 128, "collective-permute": 16}
    assert bytes_by_kind(collectives(text)) == expected
