"""The format of a run's `config.json`: versions, upgrades and differences."""

import copy
import json
from typing import Any

from ml_collections import ConfigDict

from usam_jax.utils.errors import UserError
from usam_jax.utils.renamed_fields import RENAMED

SCHEMA_VERSION = 7
# Fields that each version added, with the values that earlier versions used.
ADDED: dict[int, dict[str, dict[str, Any]]] = {
    3: {
        "optimizer": {"decay_power": 0.9, "clip_norm": 0.0},
        "train": {"ce_weight": 0.4, "dice_weight": 0.6, "dice": "squared"},
        "prompts": {"rounds": 3},
        "eval": {"max_clicks": 20},
    },
    4: {"model": {"slices": 1}, "data": {"slices": 1}},
    5: {"train": {"compiler_options": []}},
}


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Return the config as JSON content, with the schema version of its fields."""
    return {"schema_version": SCHEMA_VERSION, **json.loads(config.to_json_best_effort())}


def upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved config of any version with the current fields and without its version.

    Configs of version 1 have no `schema_version`. Raises UserError if the version is unknown, or if
    this version lacks a part of the network.
    """
    config = copy.deepcopy(saved)
    version = config.pop("schema_version", 1)
    if version not in range(1, SCHEMA_VERSION + 1):
        raise UserError(
            f"config.json of the run: got schema_version {version}, expected at most "
            f"{SCHEMA_VERSION}. Use the version of usam_jax that wrote it, or a newer one."
        )
    if version == 1:
        for section, names in RENAMED.items():
            fields = config.get(section, {})
            config[section] = {names.get(name, name): value for name, value in fields.items()}
        if config["model"].get("name") == "sam":  # S has a file of its own since version 2.
            config["model"]["name"] = "sam_s"
            for name in ("num_skips", "num_mask_tokens"):
                config["model"].pop(name)
            config["optimizer"]["learning_rates"].pop("backbone")
        config["optimizer"] |= {"name": "adamw", "momentum": 0.9, "nesterov": True}
    for sections in (x for added_in, x in ADDED.items() if version < added_in):
        for section, fields in sections.items():
            config[section] = fields | config.get(section, {})
    if version < 3:
        if "phantom_seed" in config.get("data", {}):
            config["data"]["anatomy"] = "single"
        if config["model"].get("name") in ("usam", "sam_s"):
            config["model"]["interactive"] = False
            config["optimizer"]["learning_rates"]["interactive"] = 1e-3
    model = config.get("model", {})
    if version < 6 and model.get("name") == "usam":
        model["deep_supervision"] = 0.0
    model.pop("click_gain", None)  # only in version 6
    if version < 7 and model.get("interactive"):
        raise UserError(
            f"saved config: got an interactive network of schema_version {version}, which "
            f"embeds the classes of clicks as tokens, expected {SCHEMA_VERSION}, which does not. Train "
            "it again, or use the version of usam_jax that wrote it."
        )
    return config


def flat_config(config: Any) -> dict[str, Any]:
    """Return the values of a config by dotted field name, with the types of JSON."""
    if isinstance(config, ConfigDict):
        config = json.loads(config.to_json_best_effort())
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{k}": v for k, v in flat_config(value).items()}
        else:
            flat[name] = value
    return flat


def differences(config: Any, saved: Any) -> list[str]:
    """Return a line for each field of `config` that differs from the saved one."""
    given, expected = flat_config(config), flat_config(saved)

    def describe(name: str) -> str:
        if name not in given:
            return f"config.{name}: an unknown field of the saved config ({expected[name]!r})"
        if name not in expected:
            return f"config.{name}: got {given[name]!r}, but the saved config has no such field"
        return f"config.{name}: got {given[name]!r}, expected {expected[name]!r}"

    names = sorted(given.keys() | expected.keys())
    return [describe(x) for x in names if given.get(x) != expected.get(x)]
