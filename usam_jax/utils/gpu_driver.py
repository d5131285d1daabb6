"""Whether NVIDIA's driver is new enough for the CUDA of JAX's plugin.

Imports no JAX.
"""

import importlib.metadata
import pathlib
import re

VERSION_FILE = pathlib.Path("/proc/driver/nvidia/version")  # written by the loaded driver
VERSION = re.compile(r"Kernel Module\b.*?\s(\d{3,})(\.\d+)+")
# The oldest driver of each plugin, by JAX's installation page.
OLDEST = {"jax-cuda13-plugin": 580, "jax-cuda12-plugin": 525}


def problem() -> str:
    """What is wrong with the driver and what to do, or an empty string.

    A machine without the driver or the plugin has no problem, since JAX computes on its CPU.
    """
    found = VERSION.search(VERSION_FILE.read_text()) if VERSION_FILE.is_file() else None
    plugin = next((x for x in OLDEST if is_installed(x)), None)
    if not found or not plugin or int(found[1]) >= OLDEST[plugin]:
        return ""
    return (
        f"NVIDIA's driver: got version {found[1]}, expected {OLDEST[plugin]} or later for "
        f"{plugin}. Update the driver, or set JAX_PLATFORMS=cpu to compute on the CPU."
    )


def is_installed(package: str) -> bool:
    """Whether Python finds a package of that name."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
