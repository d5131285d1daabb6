"""A workdir made of published weights, as if a run had trained them in 0 steps."""

import pathlib

from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.models import variable_shapes
from usam_jax.training import loop
from usam_jax.utils.errors import UsageError, WeightsError, list_some
from usam_jax.utils.files import write_json
from usam_jax.utils.mesh import make_mesh
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import load, run_checkpoint, run_config, saved_config

NO_SPLIT = "no split"  # what chose the checkpoint, in summaries and model cards


def write(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Save the weights of `config.init_from` as the best checkpoint of a new run, at step 0.

    Raises WeightsError if the file does not hold all weights of the network, and UsageError if
    WORKDIR holds a run, or a field of the config is invalid.
    """
    if not config.init_from:
        raise UsageError('config.init_from: got "", expected a file of weights')
    if run_config.read_config(workdir):
        raise UsageError(f"{workdir} holds a run already. Give another folder.")
    training = loop.make_training(config, 1, make_mesh(1))
    variables = load.read_initial(config)
    loaded, whole = (
        traverse_util.flatten_dict(x, sep="/") for x in (variables, variable_shapes(config.model))
    )
    if missing := [name for name in whole if name not in loaded]:
        raise WeightsError(
            f"config.init_from: {config.init_from} has no weights for {len(missing)} arrays of the "
            f"network, so it can only start a training:\n{list_some(missing)}"
        )
    run_config.check_config(workdir, config)
    with run_checkpoint.Checkpoints(workdir) as checkpoints:
        saved = saved_config.to_json(config)
        saved["eval"]["select_on"] = NO_SPLIT
        write_json(Workdir(workdir).config, saved)
        checkpoints.save(0, training.start_fn(variables), 0.0)
