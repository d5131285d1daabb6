"""`python -m benchmarks accelerator`: its steps resolve, its runner keeps limits, a dry run."""

import ast
import csv
import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from benchmarks import __main__ as main
from benchmarks.accelerator import command, context, levers, runner, steps, variants
from benchmarks.accelerator.steps import Step

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted(
    ".".join(x.relative_to(ROOT).with_suffix("").parts) for x in ROOT.glob("benchmarks/**/[!_]*.py")
)
FAKE = "tests.benchmarks.fake_steps"
DRY_STEPS = ["device", "measure_limits", "try_batch_norm"]
TINY_STEPS = [
    *("model:train bfloat16 32", "model:profile", "model:evaluate bfloat16 32"),
    *("model:pipeline bfloat16 32", "model:encoder bfloat16 32", "model:click bfloat16"),
    *("model:train bfloat16 64 remat", "model:stream bfloat16 64"),
    *("levers:try_update", "levers:try_step 32"),
    *("checks:bits first deterministic", "checks:bits second deterministic"),
]
RESULT_FILES = {
    "summary.md",
    "results.csv",
    "log.txt",
    "environment.txt",
    "profile.csv",
    "profile.png",
    "train_step.hlo.txt.gz",
    "trace.json.gz",
}


def make_settings(folder: pathlib.Path, **changes) -> context.Settings:
    (folder / "device.json").write_text(json.dumps(["a device", "versions"]))
    fields = {"out": folder, "keep": folder, "dry": True, "commit": "abc", "budget": 100.0}
    return context.Settings(**{"started": time.time(), **fields, **changes})


def outcomes(run: context.Settings) -> dict[str, str]:
    with run.notes.open() as file:
        return {x["step"].split(":", 1)[-1]: x["outcome"] for x in csv.DictReader(file)}


def test_help_lists_every_benchmark():
    text = main.make_parser().format_help()
    for name in [*main.BENCHMARKS, "accelerator", "compile_for", "page"]:
        assert f"    {name}" in text
    for benchmark in main.BENCHMARKS.values():
        assert callable(benchmark.load())


def test_command_needs_the_standard_library_only():
    code = "import benchmarks.__main__ as m; m.make_parser().parse_args(['accelerator', '--dry'])"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("step", [*steps.STEPS, *steps.CHECKS], ids=lambda x: x.call)
def test_step_resolves_and_takes_its_arguments(step):
    function, arguments = step.resolve()
    inspect.signature(function).bind(*arguments)
    if step.call.startswith("checks:golden"):
        checks = importlib.import_module("benchmarks.accelerator.checks")
        text = (ROOT / checks.GOLDEN).read_text()
        assert all(f"def {x.split('[')[0]}(" in text for x in checks.GOLDEN_TESTS)


@pytest.mark.parametrize("name", MODULES)
def test_module_uses_names_that_exist(name):
    """Each import inside a function, and each attribute of an imported module, resolves."""
    module = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(module))
    modules = {x: y for x, y in vars(module).items() if inspect.ismodule(y)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("benchmarks", "usam_jax")):
            imported = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(imported, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), ast.unparse(node)


@pytest.mark.parametrize("part", variants.PARTS)
def test_every_variant_changes_the_traced_program(part):
    make_case, forms, same = variants.PARTS[part]
    assert variants.DRY_CHOICE[part] in same

    def run():
        gradients, arguments = levers.with_gradients(*make_case(2, True))
        return gradients(*arguments)

    programs, shapes = {}, {}
    for form, changes in forms.items():
        if "cuDNN" not in form:  # cuDNN traces on a GPU only; its forms have XLA twins
            with variants.changed(changes):
                programs[form], shapes[form] = jax.make_jaxpr(lambda: run(), return_shape=True)()
    assert len({str(x) for x in programs.values()}) == len(programs), list(programs)
    shape = shapes[variants.UNCHANGED]
    assert [x for x, y in shapes.items() if str(y) != str(shape)] == []


def test_variant_of_a_missing_name_is_refused():
    with pytest.raises(AttributeError), variants.changed([(variants, "no_such_name", None)]):
        pass


def test_runner_continues_after_failing_steps(tmp_path):
    run = make_settings(tmp_path)
    calls = ["succeed first", "fail", "hang", "crash", "refuse", "succeed last"]
    found = [Step(f"{FAKE}:{x}", 0.5 if x == "hang" else 60, 0, jax=False) for x in calls]
    assert runner.run_all(run, found, []) == 3
    ended = outcomes(run)
    assert ended["succeed first"] == ended["succeed last"] == "done"
    assert ended["fail"] == "failed: ValueError: no such lever"
    assert ended["hang"].startswith("failed: given up after")
    assert ended["crash"] == "failed: the process ended with 9"
    assert ended["refuse"] == "does not run: not installed: timm"
    rows = run.results.read_text()
    assert 'abc,"DRY RUN, a device",result of first,1.5,s,versions' in rows
    assert "result of last" in (tmp_path / "summary.md").read_text()


def test_runner_keeps_the_budget(tmp_path):
    run = make_settings(tmp_path, budget=6.0, reserve=0.5)
    calls = {"succeed first": 0, "succeed long": 1e4, "hang": 0, "succeed last": 0}
    found = [Step(f"{FAKE}:{x}", 60, likely, jax=False) for x, likely in calls.items()]
    assert runner.run_all(run, found, []) == 0
    assert time.time() - run.started < 15
    ended = outcomes(run)
    assert ended["succeed first"] == "done"
    assert ended["succeed long"].startswith("left out")
    assert ended["hang"] == "stopped: the budget is spent"
    assert ended["succeed last"] == "left out"


def test_runner_ends_all_lanes_after_stop(tmp_path):
    run = make_settings(tmp_path)
    found = [Step(f"{FAKE}:{x}", 60, 0, jax=False) for x in ("stop", "succeed last")]
    checks = [Step(f"{FAKE}:hang", 60, 0, jax=False)]
    assert runner.run_all(run, found, checks) == 1
    assert outcomes(run)["succeed last"] == "left out"


def test_quiet_suspends_the_checks(tmp_path):
    run = make_settings(tmp_path)
    timed, check = (Step(f"{FAKE}:{x}", 60, 0, jax=False) for x in ("observe", "count"))
    assert runner.run_all(run, [timed], [check]) == 0
    assert outcomes(run) == {"observe": "done", "count": "done"}


def test_dry_run_measures_and_writes_results(tmp_path):
    words = [sys.executable, "-m", "benchmarks", "accelerator", "--dry", "--budget=400"]
    words += [f"--out={tmp_path / 'out'}", f"--keep={tmp_path / 'keep'}"]
    only = f"--only={','.join(DRY_STEPS)}"
    done = subprocess.run(
        [*words, only], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {"summary.md", "results.csv", "log.txt", "environment.txt"}
    assert {x.name for x in (tmp_path / "out").iterdir()} == files
    values = read_values(tmp_path / "out")
    lever = "lever, a conv unit at full size: mean and variance in one pass"
    assert values[f"{lever}, times as fast"] > 0
    assert values[f"{lever}, relative difference of results and gradients"] < 0.1


def test_steps_run_with_a_tiny_network(tmp_path):
    """Runs the functions of all steps that take the whole network, in one worker."""
    run = make_settings(tmp_path, budget=400.0)
    calls = [x._asdict() for x in (*steps.STEPS, *steps.CHECKS) if x.call in TINY_STEPS]
    assert len(calls) == len(TINY_STEPS)
    words = [sys.executable, "-m", "tests.benchmarks.tiny_worker", str(tmp_path / "progress")]
    done = subprocess.run(
        [*words, json.dumps(calls)],
        cwd=ROOT,
        env=environment() | run.to_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = outcomes(run)
    assert done.returncode == 0
    assert set(found.values()) == {"done"}, done.stdout + done.stderr
    assert len(found) == len(TINY_STEPS)
    values = read_values(tmp_path)
    assert values["training ViT-B, bfloat16, batch 32, in a row"] > 0
    assert values["deterministic: states after 3 steps of two processes equal"] == 1
    context.write_summary(run)
    assert {x.name for x in tmp_path.iterdir()} >= RESULT_FILES - {"log.txt", "environment.txt"}


def environment() -> dict[str, str]:
    """One device, and quick compilation."""
    given = {x: y for x, y in os.environ.items() if x != "JAX_NUM_CPU_DEVICES"}
    return given | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": command.DRY_FLAGS}


def read_values(folder: pathlib.Path) -> dict[str, float]:
    with (folder / "results.csv").open() as file:
        return {x["what"]: float(x["value"]) for x in csv.DictReader(file)}
