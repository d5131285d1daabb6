"""The published code's behaviour, faults included, to reproduce its results.

    python -m usam_jax.main --config=configs/care_reference.py

It wraps intensities, draws the contrast limit at random, gives points as (row, column) and chooses
the best epoch on the test set. docs/differences.md explains what is wrong with each of these.
Everything else is as in configs/care.py.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "usam") -> ConfigDict:
    """Return the config of a network, named as in configs/care.py."""
    config = care.get_config(model)
    config.data.intensity = "wrap"
    config.data.random_clahe = True
    config.prompts.order = "rowcol"
    config.eval.select_on = "test"
    return config
