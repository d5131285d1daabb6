"""Refusals of `tools.ablation`, before anything is trained."""

import json
import subprocess
import sys

from conftest import ROOT

# In a process of its own, since the tool defines flags that `usam_jax.main` has, too.
CALLS = """
import sys
from absl.testing import flagsaver
from tools import ablation
from usam_jax.utils import cli
for call in sys.argv[1:]:
    with flagsaver.flagsaver():
        print(cli.run(ablation.main, ["ablation", "--config=phantom", *call.split()]))
"""


def test_ablation_refuses_seeds_and_foreign_results(tmp_path):
    foreign = {"ablation.json": '{"mine": 1}', "ablation.md": "my notes", "dice.png": "my plot"}
    for name, content in foreign.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(content)
    other = {"config": {"seed": 0, "eval": {"split": "val"}}, "results": {}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ablation.json").write_text(json.dumps(other))
    calls = ["--seeds=0,a", "--seeds=0,-1", "more"]
    calls += [f"--workdir={tmp_path / x}" for x in (*foreign, "other")]
    command = [sys.executable, "-c", CALLS, *calls]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * len(calls), done.stderr
    assert "--seeds=['0', 'a'], expected flags and integers" in done.stderr
    for name, content in foreign.items():
        assert f"{name}: exists and is not results that this program wrote" in done.stderr
        assert (tmp_path / name / name).read_text() == content
    assert "holds a sweep over another config" in done.stderr
