"""`run.json`: what a run was made with, for whoever wants the same figures again."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from usam_jax.data.packed.format import Packed
from usam_jax.models.common import registry
from usam_jax.utils import console
from usam_jax.utils.files import checksum, read_json, write_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunRecord:
    """Adds this start of a run to `run.json`, and how far it comes."""

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, packed: Packed, first: int
    ) -> None:
        self.path, self.began = workdir / "run.json", time.monotonic()
        self.earlier = read_json(self.path).get("starts", [])
        self.start: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "seed": config.seed,
            "commit": git_commit(),
            "versions": versions(),
            "devices": [x.device_kind for x in jax.devices()],
            "num_processes": jax.process_count(),
            "data": str(packed.folder),
            "data_fingerprint": packed.manifest["fingerprint"],
            "first_step": first + 1,
        }
        weights = pathlib.Path(config.init_from)
        if not first and weights.is_file():
            self.start["init_from"] = {"file": weights.name, "sha256": checksum(weights)}
        network = config.model.name
        if registry.is_file(network):
            sha256 = checksum(pathlib.Path(network))
            known = [x["network"]["sha256"] for x in self.earlier if "network" in x]
            if known and known[-1] != sha256:
                console.info(f"warning: {network} has changed since this run began")
            self.start["network"] = {"file": network, "sha256": sha256}
        self.write(first)

    def write(self, step: int) -> None:
        """Writes the record up to a step."""
        if jax.process_index():
            return
        seconds = round(time.monotonic() - self.began, 1)
        start = self.start | {"last_step": step, "wall_seconds": seconds}
        write_json(self.path, {"schema_version": 1, "starts": [*self.earlier, start]})


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def git_commit() -> str | None:
    """The commit of this code, with a + where it was changed; None outside a repository."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")
