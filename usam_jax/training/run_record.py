"""`run.json`: versions, devices, commit, command and data of a run, to reproduce it."""

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
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import load

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunRecord:
    """The record of this start of a run in `run.json`, and of the last step that it reached.

    `first` is the number of steps done before this start. Warns if the user's network file has
    changed since the run began.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, packed: Packed, first: int
    ) -> None:
        self.path, self.began = Workdir(workdir).run, time.monotonic()
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
        weights = [x for x in load.initial_files(config) if x.is_file()]
        if not first and weights:
            self.start["init_from"] = [{"file": x.name, "sha256": checksum(x)} for x in weights]
        network = config.model.name
        if registry.is_file(network):
            sha256 = checksum(pathlib.Path(network))
            known = [x["network"]["sha256"] for x in self.earlier if "network" in x]
            if known and known[-1] != sha256:
                console.info(f"warning: {network} has changed since this run began")
            self.start["network"] = {"file": network, "sha256": sha256}
        self.write(first)

    def write(self, step: int) -> None:
        """Write the record, in process 0 only, with `step` as the last step."""
        if jax.process_index():
            return
        seconds = round(time.monotonic() - self.began, 1)
        start = self.start | {"last_step": step, "wall_seconds": seconds}
        write_json(self.path, {"schema_version": 1, "starts": [*self.earlier, start]})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def git_commit() -> str | None:
    """Return the commit of this code, with `+` if files are modified.

    Returns None if the code is not in a git repository of its own.
    """
    file = pathlib.Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Fails if the package is in a virtual environment inside another repository.
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
