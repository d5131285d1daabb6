"""The paths that a run writes."""

import pathlib

from conftest import ROOT

from usam_jax.utils.workdir import EvaluationFolder, Workdir


def paths_of(kind) -> list[str]:
    names = [name for name, x in vars(kind).items() if isinstance(x, property)]
    return [getattr(kind(pathlib.Path()), name).name for name in names]


def test_workdir_paths_are_documented():
    page = (ROOT / "docs" / "reference" / "workdir.md").read_text()
    missing = [x for x in paths_of(Workdir) + paths_of(EvaluationFolder) if f"| `{x}" not in page]
    assert not missing


def test_workdir_lists_summaries_by_name(tmp_path):
    workdir = Workdir(tmp_path)
    given = [workdir.evaluation(split, "none").summary for split in ("val", "test")]
    for path in given:
        path.parent.mkdir(parents=True)
        path.touch()
    assert workdir.summaries() == given[::-1]
