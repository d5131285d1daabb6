"""What is wrong with a data set, found before hours are spent on it: every case is read."""

import collections
import dataclasses
import hashlib
import pathlib
import shlex
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import Case, Cases, find_fault
from usam_jax.data.datasets.registry import list_cases, shared_patients
from usam_jax.data.packed.build import ordered_map
from usam_jax.io.nifti import header_warning
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, list_some

ERROR, WARNING = "error", "warning"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong: an error cannot be trained with, a warning should be looked at.

    `kind` is one word for programs, `where` the case as `SPLIT/NAME` or the data set's folder.
    """

    severity: str
    kind: str
    where: str
    problem: str
    mend: str


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What reading one case has shown."""

    findings: list[Finding]
    digest: str = ""  # of the image
    classes: frozenset[int] = frozenset()


def check(config: ConfigDict) -> tuple[list[Finding], Cases]:
    """All findings on the data set of `config.data`, errors first, and its cases by split."""
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
    return sorted(findings, key=lambda x: x.severity), cases


def inspect(where: str, case: Case) -> Inspected:
    """Reads a case and looks at what is in it."""
    try:
        image, labels = case.load_fn()
        doubt = next(filter(None, map(header_warning, nifti_files(case))), "")
    except DataError as error:
        return Inspected([unusable(where, error)])

    def warn(kind: str, problem: str, mend: str) -> Finding:
        return Finding(WARNING, kind, where, problem, mend)

    findings = []
    if not labels.any():
        findings.append(
            warn("empty", "no pixel has a label", "none, if that is so: it is evaluated only")
        )
    # Every CT shows some air; grey values of CARE are not clipped.
    if image.max() > 2 or (case.geometry and image.min() > 0):
        findings.append(
            warn(
                "intensity",
                f"grey values from {image.min():.3g} to {image.max():.3g} after the window, "
                "expected 0 (air) to about 1: is this CT in HU?",
                "look at the contact sheet; mend the values or config.data.window_level and "
                "window_width",
            )
        )
    if doubt:
        mend = "look at the contact sheet for flips; save the files anew with one true affine"
        findings.append(warn("header", doubt, mend))
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
    return Inspected(findings, digest, frozenset(np.unique(labels).tolist()))


def unusable(where: str, error: DataError) -> Finding:
    mend = error.fix or "mend or remove the file"
    return Finding(ERROR, "unusable", where, error.problem, mend)


def compare_checksums(cases: Cases) -> None:
    """Raises DataError for packed cases that are not what was packed."""
    problems = []
    found = [case for listed in cases.values() for case in listed]
    with console.Progress("checksums", len(found), "cases") as bar:
        for _, fault in ordered_map(find_fault, found):
            problems += [fault.problem] if fault else []
            bar.advance()
    if problems:
        raise DataError(f"{len(problems)} packed cases are damaged:\n{list_some(problems)}")


def nifti_files(case: Case) -> list[pathlib.Path]:
    return [x for x in case.files if x.name.endswith((".nii", ".nii.gz"))]


def find_shared_patients(cases: Cases) -> list[Finding]:
    return [
        Finding(
            ERROR,
            "shared-patient",
            f"patient {patient}",
            f"is in several splits: {', '.join(names)}",
            "move all cases of the patient into one split; if they are different people, tell so in "
            "patients.csv (columns name, here SPLIT/NAME, and patient)",
        )
        for patient, names in shared_patients(cases).items()
    ]


def find_duplicates(inspected: dict[str, Inspected], cases: dict[str, Case]) -> list[Finding]:
    """Cases with the same image: an error in two splits, for they would be known in the test."""
    same = collections.defaultdict(list)
    for name, result in inspected.items():
        if result.digest:
            same[result.digest].append(name)
    findings = []
    for first, *others in (names for names in same.values() if len(names) > 1):
        for other in others:
            leaks = first.split("/")[0] != other.split("/")[0]
            files = [shlex.quote(str(path)) for path in cases[other].files]
            mend = f"rm {' '.join(files)}" if files else "take one out of the source and pack anew"
            findings.append(
                Finding(
                    ERROR if leaks else WARNING,
                    "duplicate",
                    other,
                    f"has the same image as {first}",
                    f"keep one: {mend}",
                )
            )
    return findings


def find_absent_classes(inspected: dict[str, Inspected], config: ConfigDict) -> list[Finding]:
    """A class that no training case has cannot be learnt."""
    trained = [x.classes for name, x in inspected.items() if name.startswith("train/")]
    present = frozenset().union(*trained)
    absent = [name for i, name in enumerate(config.classes) if i and i not in present]
    mend = "look if the labels' numbers are those of config.data.classes"
    return [
        Finding(WARNING, "absent-class", str(config.root), f"no training case has {name}", mend)
        for name in absent
    ]


def summarise(findings: list[Finding], cases: Cases) -> dict[str, Any]:
    """The findings as JSON, with the number of cases of each split."""
    return {
        "num_cases": {split: len(found) for split, found in cases.items()},
        "num_errors": sum(x.severity == ERROR for x in findings),
        "num_warnings": sum(x.severity == WARNING for x in findings),
        "findings": [dataclasses.asdict(x) for x in findings],
    }


def describe(findings: list[Finding]) -> str:
    """The findings as text, those that are mended alike together."""
    groups: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for x in findings:
        text = f"{x.where}: {x.problem}"
        if x.kind == "duplicate":  # mended each in its own way
            groups[x.severity, x.kind, ""].append(f"{text}; {x.mend}")
        else:
            groups[x.severity, x.kind, x.mend].append(text)
    texts = []
    for (severity, kind, mend), lines in groups.items():
        more = "\n  (--json lists all)" if len(lines) > 20 else ""
        texts.append(f"{severity} ({kind}), {len(lines)}:\n{list_some(lines)}{more}")
        texts += [f"  what to do: {mend}"] if mend else []
    return "\n".join(texts)
