"""Train and evaluate a network.

python -m usam_jax.main --config=configs/care.py[:NETWORK] [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.utils import cli, xla_flags
from usam_jax.utils.errors import UsageError
from usam_jax.utils.run_flags import SEEDS, WORKDIR, numbers

MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and then evaluate, or evaluate the best checkpoint."
)
PROFILE = flags.DEFINE_list("profile", None, "A,B: profile steps A to B.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes outside Slurm."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Train or evaluate as the flags say."""
    if arguments:
        raise UsageError(f"arguments: got {arguments}, expected flags, which begin with --")
    seeds, profile = numbers("seeds", SEEDS.value), numbers("profile", PROFILE.value) or [0, 0]
    if len(profile) != 2 or profile[0] > profile[1] or min(profile) < 0:
        raise UsageError(f"--profile: got {profile}, expected the first and the last step, A,B")
    # Imported here, so that a wrong flag fails before JAX is loaded.
    from usam_jax.data.datasets.registry import name_classes
    from usam_jax.evaluation import checks, evaluate
    from usam_jax.evaluation.report import tables
    from usam_jax.models.common import registry
    from usam_jax.training import loop
    from usam_jax.utils import runtime
    from usam_jax.utils.mesh import make_mesh
    from usam_jax.utils.outputs import Output, check_outputs, is_json_with
    from usam_jax.utils.workdir import Workdir

    if config.train.deterministic:
        xla_flags.repeat_exactly()
    runtime.enable_compilation_cache()
    runtime.initialize_distributed(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    name_classes(config)
    runtime.keep_memory()
    runtime.start_devices()
    checks.check_all(config, make_mesh())
    name, network = cli.config_name()
    name += f"_{registry.short_name(network)}" if network else ""
    workdir = pathlib.Path(WORKDIR.value or f"runs/{name}")

    def run(folder: pathlib.Path) -> dict:
        if MODE.value == "train":
            loop.train(config, folder, evaluate.make_evaluate_fn, (profile[0], profile[1]))
        return evaluate.evaluate_workdir(config, folder)

    if not seeds:
        run(workdir)
        return
    is_own = is_json_with("seeds")
    path = Workdir(workdir).seeds
    check_outputs([Output(path, "a summary of seeds", "Give another --workdir.", is_own)], {})
    summaries = []
    for seed in seeds:
        config.seed = seed
        summaries.append(run(workdir / f"seed_{seed}"))
    if runtime.is_main_process():
        tables.print_seeds(seeds, summaries, workdir)


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
