"""Evaluations read back from their `summary.json`, of this package and of nnU-Net v2."""

import dataclasses
import math
import pathlib
from typing import Any

from usam_jax.data.class_names import require_class_names
from usam_jax.evaluation.case_metrics import ClassScore, class_status
from usam_jax.evaluation.summary import SCHEMA_VERSION
from usam_jax.io.volume_files import volume_name
from usam_jax.utils.errors import DataError, UsageError, list_some
from usam_jax.utils.files import load_json
from usam_jax.utils.workdir import SUMMARY, Workdir

# Settings that may differ between compared evaluations: their effect may be what is compared.
SOFT_SETTINGS = ("prompts", "data_fingerprint", "resolution")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation: its settings, and the scores by case and class number.

    `names` are the classes by number, empty if they are not known; `patients` are by case, None if
    not known. `settings` must be equal in both evaluations, `soft_settings` may differ; a setting
    that is not known is left out. `left_out` names the files that were not scored.
    """

    source: str
    names: dict[str, str]
    settings: dict[str, Any]
    soft_settings: dict[str, Any]
    patients: dict[str, str | None]
    scores: dict[str, dict[str, ClassScore]]
    left_out: tuple[str, ...] = ()


def find_summary(folder: pathlib.Path) -> pathlib.Path:
    """The summary in a folder, or the only one of a run. Raises UsageError if there is not one."""
    if (folder / SUMMARY).is_file():
        return folder / SUMMARY
    found = Workdir(folder).summaries()
    if len(found) > 1:
        listed = list_some([str(x.parent) for x in found])
        raise UsageError(f"{folder}: holds {len(found)} evaluations; give one of:\n{listed}")
    if not found:
        raise UsageError(
            f"{folder}: holds neither {SUMMARY} nor eval/NAME/{SUMMARY}; evaluate or score it "
            "first, or give --reference=LABELS if it holds predictions"
        )
    return found[0]


def read_evaluation(folder: pathlib.Path) -> Evaluation:
    """The evaluation in a folder. Raises DataError for a summary of neither format."""
    path = find_summary(folder)
    try:
        summary = load_json(path)
        make = from_summary if "schema_version" in summary else from_nnunet_summary
        return make(summary, path.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be used ({error!r}), expected a summary of this package or of nnU-Net v2",
            "evaluate or score it again",
        ) from error


def from_summary(summary: dict[str, Any], folder: pathlib.Path) -> Evaluation:
    """From a summary of this package. Raises DataError for another schema version."""
    version = summary["schema_version"]
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{folder / SUMMARY}: schema_version: got {version}, expected {SCHEMA_VERSION}",
            "evaluate or score it again",
        )
    cases = {x["case"]: x for x in summary["metric_per_case"]}
    require_distinct(len(summary["metric_per_case"]), len(cases), folder)
    return Evaluation(
        source=str(folder),
        names={str(i): x for i, x in enumerate(summary["classes"]) if i},
        settings={
            "empty_policy": summary["empty_policy"]["name"],
            "nsd_tolerance": summary["nsd_tolerance"],
            "distance_unit": summary["distance_unit"],
        },
        soft_settings={x: summary[x] for x in SOFT_SETTINGS if x in summary},
        patients={name: x["patient"] for name, x in cases.items()},
        scores={name: x["metrics"] for name, x in cases.items()},
        left_out=tuple(summary.get("left_out", ())),
    )


def from_nnunet_summary(summary: dict[str, Any], folder: pathlib.Path) -> Evaluation:
    """From a summary of nnU-Net, with class names from a `dataset.json` in the same folder."""
    rows = summary["metric_per_case"]
    cases = {file_stem(x.get("reference_file") or x["prediction_file"]): x["metrics"] for x in rows}
    require_distinct(len(rows), len(cases), folder)
    numbers = {number for metrics in cases.values() for number in metrics} - {"0"}
    description = folder / "dataset.json"
    labels = load_json(description).get("labels", {}) if description.is_file() else {}
    names = {str(tuple(x) if isinstance(x, list) else x): name for name, x in labels.items()}
    known = {x: names[x] for x in numbers} if numbers <= names.keys() else {}
    if known:
        require_class_names(("background", *known.values()), str(folder / "dataset.json"))
    return Evaluation(
        source=str(folder),
        names=known,
        settings={"empty_policy": "worst"},  # nnU-Net scores missed classes and false alarms as 0
        soft_settings={},
        patients=dict.fromkeys(cases),
        scores={
            case: {number: nnunet_metrics(metrics[number]) for number in numbers}
            for case, metrics in cases.items()
        },
    )


def nnunet_metrics(metrics: dict[str, Any]) -> ClassScore:
    """Dice, IoU and status.

    None instead of the NaN that nnU-Net writes for an absent class.
    """
    status = class_status(metrics["n_ref"], metrics["n_pred"])
    overlap = {x: metrics[x] for x in ("Dice", "IoU")}
    return {x: None if math.isnan(y) else y for x, y in overlap.items()} | {"status": status}


def file_stem(path: str) -> str:
    """The name of a case from the name of its file."""
    return volume_name(pathlib.PureWindowsPath(path))  # splits at both kinds of slashes


def require_distinct(count: int, num_names: int, folder: pathlib.Path) -> None:
    if not count or num_names < count:
        raise DataError(
            f"{folder / SUMMARY}: got {count} cases of {num_names} names, expected at least one case "
            "and distinct names"
        )
