"""Train networks with equal budgets and compare them: the paper's Tables 2 and 3.

    python -m tools.compare_networks --config=configs/care.py --workdir=runs/networks
        [--networks=unet,swin_unet,usam@none,usam@points3] [--seeds=0,1,2] [--against=usam@none]

Each network is trained with every seed and the config that --config=FILE:NETWORK gives, with all
--config.FIELD=VALUE. By default the networks are those of the paper's table. NETWORK@PROMPTS trains
and evaluates with the prompts none, box or pointsN. Rerun the same command to resume, to add
networks and seeds, or to repeat runs that failed.
Start it once per device, each process with a device of its own (CUDA_VISIBLE_DEVICES=1), and the
processes share the runs.

WORKDIR holds NETWORK/seed_N (runs), networks.md, networks.csv, networks.tex, networks.json, the plot
dice_and_cost.png and same_slices.png, the first seed's predictions of the same slices with the
errors boxed.

Exit code 4: some runs failed, which ended only these runs; the table has the others.
"""

import pathlib
import re
import sys
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from usam_jax.data.datasets.registry import name_classes
from usam_jax.data.packed.prepare import prepare
from usam_jax.evaluation import checks, network_table, published_results, sweep
from usam_jax.evaluation.network_run import run_network, shown_path
from usam_jax.evaluation.report import network_plots, network_tables
from usam_jax.models.common import registry
from usam_jax.models.common.flop import forward_flop
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import UsageError
from usam_jax.utils.files import write_json
from usam_jax.utils.mesh import make_mesh
from usam_jax.utils.run_flags import WORKDIR, sweep_seeds

NETWORKS = flags.DEFINE_list(
    "networks", None, "NETWORK or NETWORK@PROMPTS, ... Default: those of the paper's table."
)
AGAINST = flags.DEFINE_string("against", "usam@none", "The network that the others are tested on.")

TABLE, NUMBERS, LATEX = "networks.md", "networks.csv", "networks.tex"
CONTENT, COST, SLICES = "networks.json", "dice_and_cost.png", "same_slices.png"
OUTPUTS = (TABLE, NUMBERS, LATEX, CONTENT, COST, SLICES)
PROMPTS = re.compile(r"none|box|points(?P<count>[1-9]\d*)")


def parse_prompts(entry: str) -> dict[str, Any]:
    """Return the fields of the config that NETWORK@PROMPTS sets."""
    _, found, prompts = entry.partition("@")
    match = PROMPTS.fullmatch(prompts)
    if not found:
        return {}
    if not match:
        raise UsageError(
            f"--networks: got {entry}, expected the prompts none, box or pointsN after @"
        )
    if match["count"]:
        return {"prompts.kind": "points", "prompts.points_per_class": int(match["count"])}
    return {"prompts.kind": prompts}


def choose_networks(kind: str) -> list[str]:
    """Return the networks of --networks, by default those of the paper's table.

    Raises UsageError, which names them, for networks that do not exist, are named twice or, by
    another name of their file, would share a folder.
    """
    rows = published_results.compared_networks(kind)
    networks = [x.partition("@")[0] for x in NETWORKS.value or ()] or [x for x, _ in rows]
    known = registry.names()
    if missing := [x for x in networks if not registry.is_file(x) and x not in known]:
        raise UsageError(
            f"--networks: got {', '.join(missing)}, expected some of {', '.join(known)}, or the "
            "path of a Python file that defines SPEC"
        )
    entries = NETWORKS.value or [f"{x}@{y}" if registry.get(x).promptable else x for x, y in rows]
    names = [entry_name(x) for x in entries]
    if len(set(names)) < len(names):
        raise UsageError(f"--networks: got {', '.join(entries)}, expected each network once")
    return entries


def entry_name(entry: str) -> str:
    """Return the name of an entry in folders and tables."""
    network, at, prompts = entry.partition("@")
    return registry.short_name(network) + at + prompts


def estimate_cost(model: ConfigDict) -> float:
    """Return the FLOP of `config.model`, or 0 if tracing it fails: then its runs fail at once."""
    try:
        return forward_flop(model)
    except Exception as error:  # noqa: BLE001 - a network of the user raises any type
        console.info(f"{model.name}: cannot be traced ({type(error).__name__}: {error})")
        return 0.0


def make_runs(entries: list[str], seeds: list[int]) -> list[sweep.Run]:
    """Return the runs, all networks of a seed before the next seed.

    Raises UsageError, which names the network, if a config cannot be used.
    """
    configs, mesh = {}, make_mesh()
    for entry in entries:
        config = cli.network_config(entry.partition("@")[0])
        name_classes(config)
        config = sweep.one_mode(config, parse_prompts(entry), seeds[0])
        try:
            checks.check_all(config, mesh)
        except UsageError as error:
            raise UsageError(f"--networks: {entry}: {error}") from error
        configs[entry_name(entry)] = config
    costs = {name: estimate_cost(config.model) for name, config in configs.items()}
    return [
        sweep.Run(name, seed, sweep.one_mode(config, {}, seed), costs[name])
        for seed in seeds
        for name, config in configs.items()
    ]


def report(workdir: pathlib.Path, runs: list[sweep.Run]) -> None:
    """Write the table of the finished runs in all its forms, and its plots."""
    finished = network_table.find_finished(workdir, runs, sweep.read_results(workdir, runs))
    if not finished:
        return
    left_out = [str(x) for x in runs if not x.result(workdir).is_file()]
    table = network_table.make_table(finished, AGAINST.value, left_out)
    print(network_tables.write_markdown(workdir / TABLE, table))
    network_tables.write_numbers(workdir / NUMBERS, table)
    network_tables.write_latex(workdir / LATEX, table)
    network_plots.save_cost(workdir / COST, table)
    shown = {}
    for one in finished:
        run = next(x for x in runs if (x.name, x.seed) == (one.name, one.seeds[0]))
        if (path := shown_path(run.folder(workdir))).is_file():
            with np.load(path) as arrays:
                shown[one.name] = dict(arrays)
    drawn = network_plots.save_same_slices(workdir / SLICES, shown, tuple(table["classes"]))
    write_json(workdir / CONTENT, table | {"shown": drawn})
    seconds = sum(x["seconds"] for x in table["rows"])
    console.info(
        f"{workdir}: {', '.join(x for x in OUTPUTS if drawn or x != SLICES)}; "
        f"{console.format_time(seconds)} in all"
    )


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Run the sweep, and write its table and plots."""
    if arguments:
        raise UsageError(f"got {arguments}, expected flags\n{__doc__}")
    seeds = sweep_seeds()
    runtime.enable_compilation_cache()
    runtime.keep_memory()
    runtime.start_devices()
    entries = choose_networks(config.data.kind)
    against = AGAINST.value
    if flags.FLAGS["against"].present and against not in map(entry_name, entries):
        raise UsageError(f"--against: got {against}, expected one of {', '.join(entries)}")
    name_classes(config)
    workdir = pathlib.Path(WORKDIR.value or "runs/networks")
    runs = make_runs(entries, seeds)
    sweep.open_sweep(workdir, "networks", config, OUTPUTS)
    for run in runs[: len(entries)]:
        prepare(run.config.data)  # so that faulty data end the sweep before any training
    failed = sweep.run_all(workdir, runs, run_network)
    if not sweep.leave_report(workdir, runs):
        report(workdir, runs)
    sweep.finish(workdir, runs, failed)


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
