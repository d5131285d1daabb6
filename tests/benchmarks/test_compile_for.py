"""`python -m benchmarks compile_for`: its reader of programs, its checks, its refusal."""

import types

import pytest

from benchmarks import __main__ as main
from benchmarks.compile_for import command, kernels, programs, target, timeline
from benchmarks.hlo import ArrayType

# What XLA writes, shortened: a fusion with a place inside it, a matrix product with a workspace, a
# convolution whose window is a map, attention, and a branch of two kernels.
PROGRAM = """HloModule step

%fused (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} convert(%p), metadata={op_name="jit(step)/image_encoder/blocks_0/mlp/x"}
}

%updated (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  %n = f32[4]{0} negate(%q), metadata={op_name="jit(step)/update/neg"}
  ROOT %m = f32[4]{0} add(%n, %q), metadata={op_name="jit(step)/update/add"}
}

%same (q: f32[4]) -> f32[4] {
  ROOT %q2 = f32[4]{0} parameter(0)
}

ENTRY %main (x: bf16[8,4], w: f32[4]) -> f32[4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = f32[4]{0} parameter(1)
  %i = s32[] constant(0)
  %up = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %gemm = (bf16[8,16]{1,0}, s8[4096]{0}) custom-call(%x, %k), custom_call_target="__cublas$lt$matmul", backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}
  %k = bf16[4,16]{1,0} bitcast(%x)
  %a = bf16[2,3,10,10]{3,2,1,0} bitcast(%x)
  %g = bf16[5,3,9,9]{3,2,1,0} bitcast(%x)
  %wide = (bf16[2,5,2,2]{3,2,1,0}, u8[0]{0}) custom-call(%a, %g), window={size=9x9}, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/mask_decoder/x/up1/conv"}
  %small = (bf16[2,5,8,8]{3,2,1,0}, u8[0]{0}) custom-call(%a, %s), window={size=3x3}, custom_call_target="__cudnn$convForward"
  %s = bf16[5,3,3,3]{3,2,1,0} bitcast(%x)
  ROOT %done = f32[4]{0} conditional(%i, %w, %w), branch_computations={%updated, %same}
}
"""
GPU = target.GPUS["h100"]


def test_read_counts_kernels_bytes_and_operations():
    up, gemm, wide, small, *branch = kernels.read(PROGRAM)
    assert (up.call, up.bytes, up.flop) == ("fusion", 8 * 4 * (2 + 4), 0)
    assert up.place.endswith("mlp/x")
    # The workspace of a library call is not moved.
    assert (gemm.bytes, gemm.flop) == (2 * (8 * 4 + 4 * 16 + 8 * 16), 2 * 8 * 16 * 4)
    assert (wide.window, small.window) == (9, 3)
    assert small.flop == 2 * (2 * 5 * 8 * 8) * (3 * 3 * 3)
    assert [(x.call, x.bytes) for x in branch] == [("negate", 32), ("add", 48)]


def test_read_counts_a_loop_once_for_each_trip():
    text = PROGRAM.replace(
        "conditional(%i, %w, %w), branch_computations={%updated, %same}",
        'while(%w), body=%updated, backend_config={"known_trip_count":{"n":"3"}}',
    )
    assert [x.call for x in kernels.read(text)][4:] == ["negate", "add"] * 3


def test_by_part_sums_the_places_of_kernels():
    found = kernels.by_part(kernels.read(PROGRAM), GPU)
    assert found["update"].kernels == 2
    assert found["image encoder: MLP"].bytes == 192
    whole = found.pop("the whole")
    assert whole.kernels == 6 == sum(x.kernels for x in found.values())
    assert whole.seconds == pytest.approx(sum(x.seconds for x in found.values()))


def test_kernel_takes_the_longer_of_memory_and_arithmetic():
    array = ArrayType("bf16", (8, 8))
    kernel = kernels.Kernel("__cublas$gemm", (array, array), (array,), 0, 10**12, 0, "")
    in_bfloat16 = kernel.seconds(GPU) - GPU.gap_s
    assert in_bfloat16 == pytest.approx(10**12 / GPU.matmul_rate)
    wide = kernel._replace(operands=(ArrayType("f32", (8, 8)),) * 2)
    assert wide.seconds(GPU) - GPU.gap_s == pytest.approx(2 * in_bfloat16)
    moved = kernel._replace(bytes=10**12)
    assert moved.seconds(GPU) - GPU.gap_s == pytest.approx(10**12 / GPU.memory_rate)


# Two sums of 4 MB, of which the second waits for the first, and a kernel that needs the first.
SENDING = """HloModule step, is_scheduled=true

ENTRY %main (x: f32[1000000], y: f32[1000000]) -> f32[1000000] {
  %x = f32[1000000]{0} parameter(0)
  %y = f32[1000000]{0} parameter(1)
  %s1 = f32[1000000]{0} all-reduce-start(%x), to_apply=%add
  %s2 = f32[1000000]{0} all-reduce-start(%y), to_apply=%add
  %n = f32[1000000]{0} negate(%x)
  %d1 = f32[1000000]{0} all-reduce-done(%s1)
  ROOT %m = f32[1000000]{0} negate(%d1)
  %d2 = f32[1000000]{0} all-reduce-done(%s2)
}
"""


@pytest.mark.parametrize(("seconds", "waits"), [(1.0, 2.0), (1e-6, 0.0)])
def test_timeline_hides_sums_behind_kernels(seconds, waits):
    link = timeline.Link("a link", 2, 4e6 / (seconds * timeline.REACHED), 0.0)
    assert link.seconds(4_000_000) == pytest.approx(seconds)
    kernel = 8e6 / GPU.memory_rate + GPU.gap_s
    step = timeline.predict(kernels.instructions(SENDING), GPU, link)
    assert step.kernels == pytest.approx(2 * kernel)
    assert step.collectives == pytest.approx(2 * seconds)
    assert step.scheduled == pytest.approx(max(waits, 2 * kernel))
    at_once = SENDING.replace("all-reduce-start", "all-reduce").replace(
        "all-reduce-done", "bitcast"
    )
    blocked = timeline.predict(kernels.instructions(at_once), GPU, link)
    assert blocked.scheduled == pytest.approx(2 * (kernel + seconds))


def test_check_names_each_fault_of_a_program():
    config = types.SimpleNamespace(model=types.SimpleNamespace(dtype="bfloat16"))
    found = kernels.read(PROGRAM)
    host = '%h = () custom-call(%x), custom_call_target="xla_ffi_python_gpu_callback"'
    wide = "  %0 = stablehlo.dot_general %a, %b : (tensor<8x4xf32>, tensor<4x2xf32>) -> tensor<8x2xf32>"
    positions = wide.replace("4x2xf32", "2x32xf32")
    problems = command.check(PROGRAM + host, found, 3, wide + "\n" + positions, config)
    assert [x.split(":")[0] for x in problems] == [
        "a window as large as a map",
        "a call of the host",
        "a float32 product in a bfloat16 program",
    ]
    assert "9 pixels, expected at most 3" in problems[0]
    assert not command.check(PROGRAM, found, 9, positions, config)


def test_largest_kernel_is_that_of_the_network():
    config = programs.make_config("usam", "tiny", "bfloat16", 1)
    assert programs.largest_kernel(config) == 3


def test_command_refuses_without_the_plugin(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(target, "missing_packages", lambda: ["jax-cuda13-plugin"])
    arguments = ["compile_for", "--device=h100", f"--out={tmp_path / 'out'}"]
    assert command.main(main.make_parser().parse_args(arguments)) == 2
    error = capsys.readouterr().err
    assert "got no jax-cuda13-plugin" in error
    assert "pip install '.[cuda13]'" in error
    assert not (tmp_path / "out").exists()


def test_missing_packages_names_what_is_not_installed():
    assert target.missing_packages(["jax", *target.PACKAGES[1:]]) == ["jax-cuda13-plugin"]
    assert target.missing_packages(list(target.PACKAGES)) == []


def test_command_refuses_an_unknown_program(capsys):
    with pytest.raises(SystemExit):
        main.make_parser().parse_args(["compile_for", "--device=h100", "--programs=train,x"])
    assert "got x, expected some of train, eval, click" in capsys.readouterr().err
