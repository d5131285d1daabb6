"""Name maps by network. Each file defines `MAPS`, the published checkpoint's first."""

import importlib
import importlib.util

from usam_jax.models.common import registry
from usam_jax.utils.errors import UsageError
from usam_jax.weights.name_map import NameMap


def find_maps(network: str) -> tuple[NameMap, ...]:
    """The maps of a network, none if a user's own file does not define `MAPS` next to its SPEC."""
    if registry.is_file(network):
        return getattr(registry.load(network), "MAPS", ())
    if importlib.util.find_spec(f"usam_jax.weights.maps.{network}") is None:
        return ()
    return importlib.import_module(f"usam_jax.weights.maps.{network}").MAPS


def maps_of(network: str) -> tuple[NameMap, ...]:
    """The maps of a network. Raises UsageError if there are none."""
    found = find_maps(network)
    if not found:
        raise UsageError(
            f"{network}: got no MAPS, expected MAPS = (NameMap(...),) next to its SPEC to read or "
            "write torch checkpoints"
        )
    return found
