"""The published code's behaviour, faults included, to chase a published number.

    python -m usam_jax.main --config=configs/care_reference.py

Wrapped intensities, a random contrast limit, points as (row, column), the best epoch chosen on the
test set. Everything else is configs/care.py; docs/differences.md tells what is wrong with these.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "usam") -> ConfigDict:
    config = care.get_config(model)
    config.data.intensity = "wrap"
    config.data.random_clahe = True
    config.prompts.order = "rowcol"
    config.eval.select_on = "test"
    return config
