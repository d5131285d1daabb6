"""Prose and names: words to avoid, first lines of docstrings, and names of tests."""

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest
from conftest import ROOT

# A pattern of words to avoid, and what to write instead.
WORDS = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bways? to prompt": "prompt mode",
    r"\bgo(es|ing)? on\b": "resume, continue",
    r"\bbeside\b": "next to, compared with",
    r"\bfigures\b": "metrics, values, results",
    r"\b(each|every|no) figure\b": "metric, value, result",
    r"(?<![Tt]here )\b(is|are) no (?!(longer|better|worse|more|less)\b)[a-z]": "is not a",
    r"\bRaises? \w+ where\b": "raise ... if",
}
MAX_TEST_NAME = 60
MAX_FIRST_LINE = 90


def list_files(suffix: str) -> list[str]:
    """Paths from the root: the tracked files, or all files if this is not a git checkout."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", f"*{suffix}"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        names = listed.stdout.split("\0")[:-1]
    else:
        names = [str(x.relative_to(ROOT)) for x in ROOT.rglob(f"*{suffix}")]
    return sorted(x for x in names if not x.startswith(".") and (ROOT / x).is_file())


# This file names the words, and a diary keeps its own.
SOURCES = [x for x in list_files(".py") if x != "tests/test_style.py"]
PAGES = [x for x in list_files(".md") if not x.startswith("docs/notes/")]


def nodes(kinds) -> Iterator[tuple[str, ast.AST]]:
    for name in SOURCES:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, kinds):
                yield name, node


@pytest.mark.parametrize("pattern", WORDS)
def test_prose_avoids(pattern):
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in [*SOURCES, *PAGES]
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found, "\n".join([f"write: {WORDS[pattern]}", *found])


def test_docstrings_start_with_a_short_phrase():
    found = []
    for name, node in nodes((ast.Module, ast.ClassDef, ast.FunctionDef)):
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        if len(first) > MAX_FIRST_LINE or ";" in first:
            found.append(f"{name}:{getattr(node, 'lineno', 1)}: {first}")
    rule = f"expected at most {MAX_FIRST_LINE} characters and no semicolon"
    assert not found, "\n".join([rule, *found])


def test_test_names_are_short():
    found = [
        f"{name}:{node.lineno}: {node.name}"
        for name, node in nodes(ast.FunctionDef)
        if node.name.startswith("test_") and len(node.name) > MAX_TEST_NAME
    ]
    assert not found, "\n".join([f"expected at most {MAX_TEST_NAME} characters", *found])
