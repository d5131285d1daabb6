"""The packed slices for training, for choosing the best epoch, and for the test."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import Cases
from usam_jax.data.packed.format import Packed
from usam_jax.utils.errors import DataError, UsageError
from usam_jax.utils.files import read_json, write_json
from usam_jax.utils.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some slices of a packed split: their rows int[n] in its arrays."""

    split: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def split_subsets(packed: Packed, data: ConfigDict, select_on: str) -> dict[str, Subset]:
    """The subsets `train`, `val` and `test` of a data set, without a patient in two of them.

    `val` is the data set's own validation split if it has one. Otherwise it is held out of the
    training split: whole patients drawn by seed or, if patients are unknown, a contiguous block of
    slices; with `num_folds` it is fold number `fold`. It is empty if the best epoch is chosen on
    the test set. Slices without foreground are trained on only with `train_on_empty`.

    Raises DataError if nothing is left to train or to choose on, and UsageError for folds that
    contradict `select_on` or the data set.
    """
    check_splitting(data)
    if data.num_folds and (select_on != "val" or packed.cases("val")):
        raise UsageError(
            f"config.data.num_folds: got {data.num_folds}, but the best epoch is chosen on "
            f"{'its own validation split' if select_on == 'val' else 'the test set'}; folds are "
            "for data sets without validation split and config.eval.select_on=val"
        )
    slices = packed.slices("train")
    held_out = np.zeros(len(slices), bool)
    if select_on == "val" and not packed.cases("val"):
        names = held_out_cases(packed, data)
        held_out = np.array([x["case"] in names for x in slices], bool)
        if held_out.all() or not held_out.any():
            raise DataError(
                f"{packed.folder}: {len(slices)} slices cannot be split into training and "
                f"validation with config.data.val_fraction = {data.val_fraction} and num_folds = "
                f"{data.num_folds}; change them, or set config.eval.select_on=test"
            )
        chosen_on = [x for x, held in zip(slices, held_out, strict=True) if held]
        if not any(x["foreground"] for x in chosen_on):
            raise DataError(
                f"{packed.folder}: the {len(chosen_on)} slices for choosing the best epoch have no "
                "label; change config.data.val_fraction, or set config.eval.select_on=test"
            )
    foreground = np.array([x["foreground"] for x in slices], bool)
    trained = np.flatnonzero(~held_out & (foreground | data.train_on_empty))
    val = Subset("train", np.flatnonzero(held_out))
    if select_on == "val" and packed.cases("val"):
        val = whole(packed, "val")
    if not trained.size:
        raise DataError(f"{packed.folder}: no slice of the training split has any label")
    return {"train": Subset("train", trained), "val": val, "test": whole(packed, "test")}


def choose(subsets: dict[str, Subset], config: ConfigDict) -> Subset:
    """The subset that `config.eval.split` names. Raises UsageError if it is unknown or empty."""
    name = config.eval.split
    if name not in subsets or not len(subsets[name]):
        raise UsageError(
            f"config.eval.split: got {name!r}, expected a split that has slices: "
            f"{', '.join(x for x in subsets if len(subsets[x]))}"
        )
    return subsets[name]


def whole_cases(packed: Packed, subset: Subset) -> Subset:
    """All slices of the cases of a subset, including those that are not trained on."""
    case_of = np.array([x["case"] for x in packed.slices(subset.split)])
    kept = np.isin(case_of, case_of[subset.rows])
    return Subset(subset.split, np.flatnonzero(kept))


def name_slices(packed: Packed, subset: Subset) -> list[str]:
    """`SPLIT/NAME` of each slice of a subset."""
    slices = packed.slices(subset.split)
    return [f"{subset.split}/{slices[row]['name']}" for row in subset.rows]


def write_record(workdir: pathlib.Path, packed: Packed, subsets: dict[str, Subset]) -> None:
    """Write `data.json`: the data set of a run, and the slices of each subset."""
    named = {name: name_slices(packed, subset) for name, subset in subsets.items()}
    about = {
        "kind": packed.manifest["settings"]["kind"],
        "fingerprint": packed.manifest["fingerprint"],
    }
    write_json(Workdir(workdir).data, about | named)


def check_record(workdir: pathlib.Path, packed: Packed) -> None:
    """Raise DataError if the data set has changed since the run began."""
    record = read_json(Workdir(workdir).data)
    if record.get("fingerprint") != packed.manifest["fingerprint"]:
        raise DataError(
            f"{packed.folder}: the data set has changed since {workdir} began; restore its files "
            "to resume that run, or give another --workdir"
        )


def check_unseen(workdir: pathlib.Path, packed: Packed, subset: Subset, name: str) -> None:
    """Raise DataError if slices that the run was trained on would count as val or test."""
    record = read_json(Workdir(workdir).data)
    if name == "train" or record.get("fingerprint") != packed.manifest["fingerprint"]:
        return
    seen = set(record["train"]) & set(name_slices(packed, subset))
    if seen:
        raise DataError(
            f"{workdir} was trained on {len(seen)} of the {len(subset)} slices of the split "
            f"{name}, which is drawn differently here; give the config.data and "
            "config.eval.select_on of that run"
        )


def whole(packed: Packed, split: str) -> Subset:
    """All slices of a packed split."""
    return Subset(split, np.arange(sum(x["num_slices"] for x in packed.cases(split))))


def held_out_cases(packed: Packed, data: ConfigDict) -> set[str]:
    """The training cases held out for validation: those in the manifest, or else drawn now."""
    recorded = packed.manifest.get("held_out", {}).get(split_setting(data))
    folds = recorded or draw_held_out(packed.cases("train"), data)
    return set(folds[data.fold if data.num_folds else 0])


def check_splitting(data: ConfigDict) -> None:
    """Raise UsageError for an invalid fraction, number of folds or fold."""
    if not 0 < data.val_fraction < 1:
        raise UsageError(
            f"config.data.val_fraction: got {data.val_fraction}, expected between 0 and 1"
        )
    if data.num_folds < 0 or data.num_folds == 1:
        raise UsageError(f"config.data.num_folds: got {data.num_folds}, expected 0, or 2 or more")
    if data.num_folds and not 0 <= data.fold < data.num_folds:
        raise UsageError(f"config.data.fold: got {data.fold}, expected 0 to {data.num_folds - 1}")


def split_setting(data: ConfigDict) -> str:
    """The key in the manifest's `held_out` for a config."""
    what = f"num_folds={data.num_folds}" if data.num_folds else f"val_fraction={data.val_fraction}"
    return f"split_seed={data.split_seed} {what}"


def draw_held_out(cases: list[dict[str, Any]], data: ConfigDict) -> list[list[str]]:
    """The names of the held-out cases: a list per fold, or a single list without folds.

    A list holds whole patients, shuffled by `split_seed`, or a contiguous block of cases if any
    patient is unknown.
    """
    patients = [x["patient"] for x in cases]
    groups: list = list(range(len(cases)))  # without patients a case is its own group
    labels: list = groups
    if None not in patients:
        labels = patients
        groups = np.random.default_rng(data.split_seed).permutation(sorted(set(patients))).tolist()
    num = len(groups)
    bounds = [(num - math.ceil(data.val_fraction * num), num)]
    if data.num_folds:
        bounds = [
            (num * i // data.num_folds, num * (i + 1) // data.num_folds)
            for i in range(data.num_folds)
        ]
    fold_of = {group: i for i, (start, stop) in enumerate(bounds) for group in groups[start:stop]}
    folds: list[list[str]] = [[] for _ in bounds]
    for case, label in zip(cases, labels, strict=True):
        if label in fold_of:
            folds[fold_of[label]].append(case["name"])
    return folds


def find_unsplittable(cases: Cases, data: ConfigDict) -> str:
    """Why no validation split can be held out of the training split, "" if one can be.

    Each fold needs cases that it holds out and cases that are left to train on.
    """
    found = cases.get("train", [])
    if not all(x.num_slices for x in found) or cases.get("val"):
        return ""  # unusable cases are reported first
    records = [{"name": x.name, "patient": x.patient} for x in found]
    if all(0 < len(names) < len(found) for names in draw_held_out(records, data)):
        return ""
    patients = {x.patient for x in found}
    number, unit = (len(found), "case") if None in patients else (len(patients), "patient")
    held = f"{number} {unit}{'s' * (number != 1)}"
    how = (
        f"num_folds = {data.num_folds}" if data.num_folds else f"val_fraction = {data.val_fraction}"
    )
    return (
        f"train holds {held}, of which none is left to train on or to choose the best epoch on "
        f"({how})"
    )


def record_held_out(path: pathlib.Path, manifest: dict[str, Any], data: ConfigDict) -> None:
    """Add the held-out cases of a config to a manifest without a validation split."""
    setting, cases = split_setting(data), manifest["splits"]
    if cases.get("val") or setting in manifest["held_out"]:
        return
    manifest["held_out"][setting] = draw_held_out(cases["train"], data)
    write_json(path, manifest)
