"""The config that a run saves as `config.json`, and configs of older versions brought up to date."""

import copy
import json
from typing import Any

from ml_collections import ConfigDict

from usam_jax.utils.renamed_fields import RENAMED

SCHEMA_VERSION = 2


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON content, with the version of its fields."""
    return {"schema_version": SCHEMA_VERSION, **json.loads(config.to_json_best_effort())}


def upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config of any version with today's field names, without its version.

    Configs of version 1 have no `schema_version`.
    """
    config = copy.deepcopy(saved)
    version = config.pop("schema_version", 1)
    if version == 1:
        for section, names in RENAMED.items():
            fields = config.get(section, {})
            config[section] = {names.get(name, name): value for name, value in fields.items()}
    return config
