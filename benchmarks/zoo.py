"""Fill the table of networks in docs/zoo.md from their SPECs, name maps and golden values."""

import json
import math
import pathlib
import re
from collections.abc import Mapping

import jax

from benchmarks.results import ROOT
from usam_jax import models
from usam_jax.models.common import registry
from usam_jax.models.common.flop import forward_flop
from usam_jax.utils.files import atomic_write
from usam_jax.weights.maps import find_maps

PAGE = ROOT / "docs" / "zoo.md"
GOLDEN = ROOT / "tests" / "golden"
TABLE = re.compile(r"(<!-- networks -->\n).*?(<!-- end of networks -->)", re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \|.*\| (\d+\.\d) \|", re.MULTILINE)
HEADER = (
    "| network | paper | code | parameters | GFLOP | image size | tolerance | weights |\n"
    "| --- | --- | --- | ---: | ---: | --- | ---: | --- |\n"
)


def count_gflop(name: str) -> float:
    """Return the operations of a network's forward pass of one slice, in GFLOP."""
    return forward_flop(models.make_config(name)) / 1e9


def link_paper(paper: str) -> str:
    """Return the link to an arXiv id, or another place of publication as it is."""
    if re.fullmatch(r"\d{4}\.\d{5}", paper):
        return f"[arXiv {paper}](https://arxiv.org/abs/{paper})"
    return paper


def link_code(code: str) -> str:
    """Return the link to REPOSITORY@COMMIT."""
    repository, _, commit = code.partition("@")
    name = repository.removeprefix("github.com/")
    return f"[{name} at {commit}](https://{repository}/tree/{commit})"


def golden_tolerance(name: str) -> str:
    """Return the largest error of the golden logits, or a dash if a network has none of its own."""
    path = GOLDEN / name / "source.json"
    if not path.is_file():
        return "-"
    return f"{json.loads(path.read_text())['tolerances']['logits']:.0e}".replace("e-0", "e-")


def make_row(name: str, gflop: float) -> str:
    """Return the table's row of a network."""
    spec, config = models.get(name), models.make_config(name)
    shapes = models.variable_shapes(config)["params"]
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    cells = (
        f"`{name}`",
        link_paper(spec.paper),
        link_code(spec.code),
        f"{count:,}",
        f"{gflop:.1f}",
        spec.at(config).image_size.words.removeprefix("a positive "),
        golden_tolerance(name),
        "; ".join(dict.fromkeys(x.source for x in find_maps(name))),
    )
    return f"| {' | '.join(cells)} |\n"


def fill(text: str, gflop: Mapping[str, float]) -> str:
    """Return the page with the row of each network, whose GFLOP are given."""
    rows = "".join(make_row(name, gflop[name]) for name in registry.names())
    return TABLE.sub(lambda found: found[1] + "\n" + HEADER + rows + "\n" + found[2], text)


def read_gflop(text: str) -> dict[str, float]:
    """Return the GFLOP that the page states, by network."""
    return {name: float(gflop) for name, gflop in ROW.findall(text)}


def write_page(page: pathlib.Path = PAGE) -> None:
    """Fill the page, for which each network is traced once."""
    text = fill(page.read_text(), {name: count_gflop(name) for name in registry.names()})
    with atomic_write(page) as temporary:
        temporary.write_text(text)
