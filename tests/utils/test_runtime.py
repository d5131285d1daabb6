"""The process of a run."""

import os
import platform
import pwd
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from usam_jax import main
from usam_jax.evaluation.report import tables
from usam_jax.utils import runtime
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(("given", "expected"), [({}, "x/usam_jax/jax"), ({"own": "y"}, "y")])
def test_enable_compilation_cache_respects_the_environment(given, expected):
    environment = {x: y for x, y in os.environ.items() if x != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": "x", "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": given["own"]} if given else {}
    code = (
        "import jax; from usam_jax.utils import runtime; runtime.enable_compilation_cache(); "
        "print(jax.config.values['jax_compilation_cache_dir'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected


def test_cache_folder_ignores_an_empty_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / ".cache" / "usam_jax" / "jax"


def test_user_without_home_runs_without_cache(monkeypatch, capsys):
    def no_entry(_uid):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    runpy.run_path(runtime.__file__)  # nothing is looked up at import
    assert runtime.cache_folder() is None
    assert "no cache of compiled programs" in capsys.readouterr().err


def test_unwritable_home_gives_no_cache(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    assert runtime.cache_folder() is None
    assert f"{tmp_path} cannot be written" in capsys.readouterr().err


FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # without huge pages, which cause few faults
import jax, jax.numpy as jnp
from usam_jax.utils import runtime
if sys.argv[1] == "kept":
    runtime.keep_memory()
step = jax.jit(lambda x: x + 1)
x = jnp.ones((3072, 3072))  # above the 32 MiB that glibc keeps by default
found = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found))  # other steps also count the first allocations and other threads
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory configures glibc")
def test_keep_memory_avoids_page_faults():
    def page_faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.check_output(command, cwd=ROOT, text=True))

    result = 3072**2 * 4 // os.sysconf("SC_PAGE_SIZE")
    # On a busy machine about one process in dozens faults at each step.
    assert any(page_faults("kept") < result // 10 for _ in range(3))
    assert page_faults("given back") > result // 10


def test_print_seeds_shows_mean_and_deviation(tmp_path, capsys):
    dice = [
        {"rectum": 0.8, "tumour": None, "mean": 0.8},
        {"rectum": 0.9, "tumour": None, "mean": 0.9},
    ]
    summaries = [{"pooled": {"dice": x, "iou": x}, "prompts": "none (automatic)"} for x in dice]
    tables.print_seeds([0, 1], summaries, tmp_path)
    printed = capsys.readouterr().out
    assert "85.00 ± 7.07" in printed and "absent" in printed
    assert (tmp_path / "seeds.json").is_file()


def test_numbers_names_the_flag():
    assert main.numbers("seeds", ["0", "12"]) == [0, 12]
    with pytest.raises(UsageError, match=r"--seeds: got \['a'\], expected integers"):
        main.numbers("seeds", ["a"])
