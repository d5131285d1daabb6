"""README and docs: links, commands, snippets and the demo's Dice."""

import importlib.util
import json
import pathlib
import re
import runpy
import shlex

import pytest
from conftest import ROOT, make_variables

from configs import care
from usam_jax import models, torch_file
from usam_jax.models import usam
from usam_jax.utils import config_file
from usam_jax.weights import load, saved_config

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"(?:python -m [a-z_.]+|usam-[a-z-]+) [^`\n#|]*")
SHARED_FLAGS = {"config", "debug", "help"}
# Tools take the flags of the module that they share; a run with its own config has its own fields.
SOURCES = {
    "usam-train": "usam_jax.main",
    "usam-predict": "usam_jax.predict",
    "usam-view": "usam_jax.viewer",
}


def snippets(page, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        if "notes" not in page.parts:
            found += [(page.name, x.strip()) for x in COMMAND.findall(page.read_text())]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_page_has_no_dangling_links(page):
    links = [x for x in LINK.findall(page.read_text()) if "://" not in x]
    assert [x for x in links if not (page.parent / x).exists()] == []


def module_of(words: list[str]) -> str:
    if words[0] == "python":
        return words[2]
    name = words[0].removeprefix("usam-").replace("-", "_")
    return SOURCES.get(words[0], f"tools.{name}")


def defined_flags(module: str) -> set[str]:
    """The flags that a program's source defines, and those of the modules that programs share."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    origin = spec.origin
    if spec.submodule_search_locations:
        origin = origin.replace("__init__.py", "__main__.py")
    texts = [
        pathlib.Path(origin).read_text(),
        (ROOT / "usam_jax/evaluation/scoring_flags.py").read_text(),
        (ROOT / "usam_jax/utils/run_flags.py").read_text(),
    ]
    texts += [
        (ROOT / f"benchmarks/{x}/command.py").read_text() for x in ("accelerator", "compile_for")
    ]
    pattern = r"""(?:DEFINE_\w+|add_argument|add)\(\s*["'](?:--)?([\w-]+)["']"""
    return {x for text in texts for x in re.findall(pattern, text)} | SHARED_FLAGS


def check_command(command: str) -> str:
    """The first name in a command that does not exist, or an empty string."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace("...", ""))
    flags, config = defined_flags(module_of(words)), care.get_config()
    for word in (x for x in words if x.startswith("--")):
        name, _, value = word.removeprefix("--").partition("=")
        if name == "config":
            path, _, network = value.partition(":")
            get_config = runpy.run_path(str(config_file.find_config(path)))["get_config"]
            config = get_config(*filter(None, [network]))
        elif name.startswith("config."):
            field = name.removeprefix("config.")
            if field not in saved_config.flat_config(config):
                return f"{command}: {field}"
        elif name not in flags:
            return f"{command}: --{name}"
    return ""


def test_commands_name_what_exists():
    placeholders = ("path/to/net.py", "NAME", "NETWORK", "FIELD")
    found = [x for _, x in commands() if not any(y in x for y in placeholders)]
    assert len(found) > 30
    assert [wrong for x in found if (wrong := check_command(x))] == []


def test_readme_snippet_runs(monkeypatch):
    usam.VARIANTS["smallest"] = usam.Variant(48, 2, 2, (1,), window=7, dim=32)
    small = models.make_config("usam")
    small.variant = "smallest"
    published = load.to_published(make_variables(small), small)
    monkeypatch.setattr(torch_file, "load", lambda path: published)
    monkeypatch.setattr(models, "make_config", lambda name: small)
    (code,) = snippets(ROOT / "README.md", "python")
    names: dict = {}
    exec(code, names)  # noqa: S102 - a page of this repository
    assert names["logits"].shape == (1, 224, 224, 3)


def test_adding_a_model_snippet_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = snippets(ROOT / "docs/adding-a-model.md", "python")
    exec(code, {})  # noqa: S102 - a page of this repository
    assert capsys.readouterr().out == "set()\n"


def test_readme_states_the_recorded_dice_of_the_demo():
    run = json.loads((ROOT / "docs/demo/record.json").read_text())["runs"][0]
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- demo -->")[1].split("<!-- end of demo -->")[0]
    clicks = ", ".join(f"{100 * run['clicks']['dice'][n]:.0f}" for n in (0, 1, 3, 10))
    for stated in (
        f"{run['steps']} of 8 slices | {run['seconds'] / 60:.0f} minutes | none (automatic) |",
        f"none (automatic) | {100 * run['dice']['none']:.0f} %",
        f"3 points per class from the ground truth | {100 * run['dice']['points3']:.0f} %",
        f"0, 1, 3, 10 clicks of a robot user, mean over slices with foreground | {clicks} %",
    ):
        assert stated in table
    # Nowhere else, so that it cannot disagree.
    for page in [*PAGES, *(ROOT / "configs").glob("*.py")]:
        rest = page.read_text().replace(table, "")
        assert not re.search(r"demo[^.|]*\d\d to \d\d %", rest), page


def test_recorded_demo_follows_its_clicks():
    clicks = json.loads((ROOT / "docs/demo/record.json").read_text())["runs"][0]["clicks"]
    assert clicks["adherence"] > 0.95 and clicks["cleared_by_negative"] > 0.9
    after = [clicks["dice"][n] for n in (0, 1, 3, 5, 10)]
    assert after == sorted(after) and after[2] > 0.85
