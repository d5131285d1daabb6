"""Checks a data set by reading every case, before hours are spent on training with it."""

import collections
import dataclasses
import hashlib
import pathlib
import shlex
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data import splits, values
from usam_jax.data.case import Case, Cases, find_fault
from usam_jax.data.datasets.registry import find_left_out, list_cases
from usam_jax.data.patients import shared_patients
from usam_jax.data.values import GreyValues
from usam_jax.io.nifti import header_warnings
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, list_some
from usam_jax.utils.parallel import ordered_map

ERROR, WARNING = "error", "warning"
LEFT_OUT = "left-out"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of a data set: an error prevents training, a warning should be looked at.

    `kind` is one word for programs, `where` the case as `SPLIT/NAME` or the data set's folder, and
    `fix` what to do.
    """

    severity: str
    kind: str
    where: str
    problem: str
    fix: str


@dataclasses.dataclass(frozen=True)
class Inspected:
    """The result of reading one case."""

    findings: list[Finding]
    digest: str = ""  # hash of the image
    classes: frozenset[int] = frozenset()
    values: GreyValues | None = None


def check(config: ConfigDict, select_on: str = "val") -> tuple[list[Finding], Cases]:
    """The findings on the data set of `config.data`, errors first, and its cases by split.

    `select_on` is `config.eval.select_on`: the split that chooses the best epoch.
    """
    try:
        cases = list_cases(config)
    except DataError as error:
        return [unusable(str(config.root), error)], {}
    named = {f"{split}/{x.name}": x for split, found in cases.items() for x in found}
    inspected: dict[str, Inspected] = {}
    with console.Progress("checking", len(named), "cases") as bar:
        for name, result in ordered_map(lambda x: inspect(x, named[x]), list(named)):
            inspected[name] = result
            bar.advance()
    findings = [x for result in inspected.values() for x in result.findings]
    findings += find_shared_patients(cases)
    findings += find_duplicates(inspected, named)
    findings += find_absent_classes(inspected, config)
    findings += find_unread(config)
    findings += find_unusable_splits(inspected, str(config.root))
    findings += find_too_few(cases, config, select_on)
    return sorted(findings, key=lambda x: x.severity), cases


def inspect(where: str, case: Case) -> Inspected:
    """Read a case and check its content."""
    try:
        image, labels = case.load_fn()
        header = "; ".join(header_warnings(volume_files(case)))
    except DataError as error:
        return Inspected([unusable(where, error)])

    def warn(kind: str, problem: str, fix: str) -> Finding:
        return Finding(WARNING, kind, where, problem, fix)

    findings = []
    if not labels.any():
        findings.append(
            warn(
                "empty",
                "no pixel has a label",
                "nothing, if that is right: only evaluation uses it",
            )
        )
    found = case.packed_values or values.measure(image)
    if doubt := values.doubt(found, case.geometry is not None):
        findings.append(warn("intensity", doubt, values.FIX))
    if header:
        fix = "look at the contact sheet for flips; save the files again with a correct header"
        findings.append(warn("header", header, fix))
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
    return Inspected(findings, digest, frozenset(np.unique(labels).tolist()), found)


def unusable(where: str, error: DataError) -> Finding:
    """The finding for a DataError."""
    fix = error.fix or "correct or remove the file"
    return Finding(ERROR, "unusable", where, error.problem, fix)


def compare_checksums(cases: Cases) -> None:
    """Raise DataError if packed cases do not match their checksums."""
    problems = []
    found = [case for listed in cases.values() for case in listed]
    with console.Progress("checksums", len(found), "cases") as bar:
        for _, fault in ordered_map(find_fault, found):
            problems += [fault.problem] if fault else []
            bar.advance()
    if problems:
        raise DataError(f"{len(problems)} packed cases are damaged:\n{list_some(problems)}")


def volume_files(case: Case) -> list[pathlib.Path]:
    """The case's files that are volumes."""
    return [x for x in case.files if volume_ending(x)]


def find_shared_patients(cases: Cases) -> list[Finding]:
    """An error for each patient in several splits."""
    return [
        Finding(
            ERROR,
            "shared-patient",
            f"patient {patient}",
            f"is in several splits: {', '.join(names)}",
            "move all cases of the patient into one split; if they are different people, name them "
            "in patients.csv (columns name, here SPLIT/NAME, and patient)",
        )
        for patient, names in shared_patients(cases).items()
    ]


def find_duplicates(inspected: dict[str, Inspected], cases: dict[str, Case]) -> list[Finding]:
    """Cases with the same image: an error across splits, since the test would leak."""
    same = collections.defaultdict(list)
    for name, result in inspected.items():
        if result.digest:
            same[result.digest].append(name)
    findings = []
    for first, *others in (names for names in same.values() if len(names) > 1):
        for other in others:
            leaks = first.split("/")[0] != other.split("/")[0]
            files = [shlex.quote(str(path)) for path in cases[other].files]
            fix = f"rm {' '.join(files)}" if files else "remove one from the source and pack again"
            findings.append(
                Finding(
                    ERROR if leaks else WARNING,
                    "duplicate",
                    other,
                    f"has the same image as {first}",
                    f"keep one: {fix}",
                )
            )
    return findings


def find_unread(config: ConfigDict) -> list[Finding]:
    """A warning for each file or folder among the cases that the layout does not read."""
    fix = "name the file as the layout asks, or move it elsewhere"
    return [
        Finding(WARNING, LEFT_OUT, str(path), reason, fix)
        for path, reason in find_left_out(config).items()
    ]


def find_absent_classes(inspected: dict[str, Inspected], config: ConfigDict) -> list[Finding]:
    """A warning for each class that no training case has, since it cannot be learnt."""
    trained = [x.classes for name, x in inspected.items() if name.startswith("train/")]
    present = frozenset().union(*trained)
    absent = [name for i, name in enumerate(config.classes) if i and i not in present]
    fix = "check that the numbers of the labels are those of config.data.classes"
    return [
        Finding(WARNING, "absent-class", str(config.root), f"no training case has {name}", fix)
        for name in absent
    ]


def find_unusable_splits(inspected: dict[str, Inspected], root: str) -> list[Finding]:
    """An error for each split with unusable grey values in most of its cases."""
    by_split: dict[str, list[GreyValues]] = collections.defaultdict(list)
    for name, result in inspected.items():
        if result.values:
            by_split[name.split("/")[0]].append(result.values)
    problem = "the grey values of more than half of the cases cannot be used"
    return [
        Finding(ERROR, "intensity", root, f"{split}: {problem}", values.FIX)
        for split in values.unusable_splits(by_split)
    ]


def find_too_few(cases: Cases, config: ConfigDict, select_on: str) -> list[Finding]:
    """An error if no validation split can be held out of so few training cases."""
    problem = splits.find_unsplittable(cases, config) if select_on == "val" else ""
    fix = (
        "add patients; without a validation split set config.eval.select_on=test, whose results on "
        "the test set are then too high"
    )
    return [Finding(ERROR, "too-few", str(config.root), problem, fix)] if problem else []


def summarise(findings: list[Finding], cases: Cases) -> dict[str, Any]:
    """The findings as JSON, with the number of cases per split."""
    return {
        "num_cases": {split: len(found) for split, found in cases.items()},
        "num_errors": sum(x.severity == ERROR for x in findings),
        "num_warnings": sum(x.severity == WARNING for x in findings),
        "findings": [dataclasses.asdict(x) for x in findings],
    }


def describe(findings: list[Finding]) -> str:
    """The findings as text, grouped by what to do."""
    groups: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for x in findings:
        text = f"{x.where}: {x.problem}"
        if x.kind == "duplicate":  # each has a fix of its own
            groups[x.severity, x.kind, ""].append(f"{text}; {x.fix}")
        else:
            groups[x.severity, x.kind, x.fix].append(text)
    texts = []
    for (severity, kind, fix), lines in groups.items():
        more = "\n  (--json lists all)" if len(lines) > 20 else ""
        texts.append(f"{severity} ({kind}), {len(lines)}:\n{list_some(lines)}{more}")
        texts += [f"  what to do: {fix}"] if fix else []
    return "\n".join(texts)
