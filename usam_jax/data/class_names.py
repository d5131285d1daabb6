"""Names that classes cannot have, because results are stored under the names of classes."""

from collections.abc import Sequence

from usam_jax.utils.errors import UsageError

MEAN = "mean"  # the key of the mean over the classes, next to the classes


def metric_key(name: str) -> str:
    """A class name as it stands in the names of metrics, such as `val/dice/normal_rectum`."""
    return name.replace(" ", "_")


def require_class_names(names: Sequence[str], field: str) -> None:
    """Raise UsageError unless there are two classes or more, whose names can be told apart.

    `field` says where the names come from.
    """
    keys = [metric_key(x) for x in names]
    if len(names) < 2 or len(set(keys)) < len(keys) or "" in keys:
        raise UsageError(
            f"{field}: got {tuple(names)}, expected the background and then at least one class, "
            "all of different names (a space and _ count as equal)"
        )
    if MEAN in keys:
        raise UsageError(
            f"{field}: got {tuple(names)}, expected no class named {MEAN}, which is the name of "
            "the mean over the classes. Give the class another name."
        )
