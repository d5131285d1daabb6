"""Measure how fast parts of this package are.

Results are appended to benchmarks/results.csv with commit, device and versions, and fill the
tables of docs/performance.md and docs/zoo.md. `accelerator` writes its results to a folder of its
own; `compile_for` predicts without a GPU.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.accelerator import command as accelerator
from benchmarks.compile_for import command as compile_for
from benchmarks.results import (
    COLUMNS,
    RESULTS,
    ROOT,
    Row,
    append_csv,
    describe_commit,
    describe_device,
    describe_versions,
)

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "zoo.md")
PICTURES = ROOT / "docs" / "performance"


class Benchmark(NamedTuple):
    """`function` is "module:name" in this package and returns rows.

    `summary` is for --help.
    """

    function: str
    summary: str
    devices: tuple[str, ...] = ("cpu", "gpu")

    def load(self) -> Callable[..., list[Row]]:
        module, name = self.function.split(":")
        function: Callable[..., list[Row]] = getattr(
            importlib.import_module(f"benchmarks.{module}"), name
        )
        return function


BENCHMARKS = {
    "train": Benchmark("training:measure_train", "training step: compilation, slices/s, memory"),
    "eval": Benchmark("training:measure_eval", "forward pass; SAM's encoder compared with torch"),
    "epochs": Benchmark("epochs:measure_epochs", "training steps fed by the real data pipeline"),
    "parts": Benchmark("parts:measure_parts", "each part of the model alone"),
    "data": Benchmark("data:measure_data", "loading, packing and opening slices"),
    "click": Benchmark("prediction:measure_prediction", "a click, a predicted volume", ("cpu",)),
    "report": Benchmark(
        "evaluation:measure_evaluation", "model, scores and report of an evaluation", ("cpu",)
    ),
    "viewer": Benchmark("viewer:measure_viewer", "the viewer's page in Chromium", ("cpu",)),
    "startup": Benchmark("startup:measure_startup", "time to the first training step"),
    "cost": Benchmark("cost:measure_cost", "cost against image size, classes, points", ("cpu",)),
    "rounds": Benchmark("clicks:measure_rounds", "training step by number of simulated clicks"),
    "volume_clicks": Benchmark(
        "clicks:measure_volume_clicks", "clicks that a volume needs, of an interactive run"
    ),
    "networks": Benchmark("networks:measure_network", "step and forward pass of each network"),
}


def print_rows(rows: list[Row], commit: str, device: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{commit}, {device}", title_justify="left")
    for name in COLUMNS[2:5]:
        table.add_column(name, justify="right" if name == "value" else "left")
    for what, value, unit in rows:
        table.add_row(what, f"{value:.4g}", unit)
    Console(highlight=False, soft_wrap=True).print(table)


def measure(name: str, fail: Callable[[str], Any], *arguments: Any, dry: bool = False) -> None:
    """Run one benchmark, append its rows to results.csv and update the pages and their plots.

    A dry run only prints the rows. Calls `fail` with a message if the benchmark does not run on
    this device.
    """
    import cv2
    import jax

    from usam_jax.utils import runtime, xla_flags

    cv2.setNumThreads(1)
    xla_flags.use_fast_convolutions()
    if name not in ("click", "viewer"):  # the Predictor's users run with the allocator's defaults
        runtime.keep_memory()
    expected = BENCHMARKS[name].devices
    if (found := jax.default_backend()) not in expected:
        fail(f"{name}: got JAX on {found}, expected {' or '.join(expected)}")
    jax.config.update("jax_enable_compilation_cache", False)
    about, versions = (describe_commit(), describe_device()), describe_versions()
    rows = BENCHMARKS[name].load()(*arguments)
    print_rows(rows, *about)
    if dry:
        return
    append_csv(RESULTS, COLUMNS, ((*about, x, f"{y:.4g}", unit, versions) for x, y, unit in rows))
    PICTURES.mkdir(parents=True, exist_ok=True)
    if name == "cost":
        from benchmarks.cost import draw_cost

        draw_cost(PICTURES / "cost.png", rows)
    if name == "parts":
        from benchmarks.parts import draw_parts

        draw_parts(PICTURES / "parts.png", RESULTS, about[1])
    fill_pages()


def measure_networks(given: list[str], dry: bool, fail: Callable[[str], Any]) -> int:
    """Measure one network here, or each of several in a process. Returns the exit code."""
    from benchmarks import networks
    from usam_jax.utils.errors import SomeFailed, UsageError

    try:
        names = networks.choose_networks(given)
        if len(names) == 1:
            measure("networks", fail, *names, dry, dry=dry)
        else:
            networks.measure_each(names, dry)
    except UsageError as error:
        fail(str(error))
    except SomeFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def fill_pages() -> None:
    from benchmarks.page import write_page

    for page in PAGES:
        write_page(page, RESULTS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.summary, description=benchmark.summary)
        if name == "networks":
            command.add_argument(
                "networks", nargs="*", help="names or files; all networks if none is given"
            )
            command.add_argument(
                "--dry", action="store_true", help="small networks, once; the rows are not recorded"
            )
        if name == "volume_clicks":
            command.add_argument("workdir", help="of an interactive run")
    accelerator.add_flags(
        commands.add_parser(
            "accelerator", help=accelerator.SUMMARY, description=accelerator.__doc__
        )
    )
    compile_for.add_flags(
        commands.add_parser(
            "compile_for", help=compile_for.SUMMARY, description=compile_for.__doc__
        )
    )
    commands.add_parser("demo", help="the demo, for docs/demo and README.md")
    commands.add_parser("page", help="fill the tables of the pages from results.csv")
    commands.add_parser("zoo", help="fill the table of networks in docs/zoo.md")
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.name == "accelerator":
        return accelerator.main(arguments)
    if arguments.name == "compile_for":
        return compile_for.main(arguments)
    if arguments.name == "demo":
        from benchmarks.demo import measure_demo

        measure_demo()
    elif arguments.name == "page":
        fill_pages()
    elif arguments.name == "zoo":
        from benchmarks.zoo import write_page

        write_page()
    elif arguments.name == "networks":
        return measure_networks(arguments.networks, arguments.dry, parser.error)
    else:
        given = [arguments.workdir] if arguments.name == "volume_clicks" else []
        measure(arguments.name, parser.error, *given)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
