"""Whose cases are whose: a table in the data set's folder, and patients in several splits."""

import csv
import dataclasses
import pathlib

from usam_jax.data.case import Case, Cases
from usam_jax.io.volume_files import compose
from usam_jax.utils.errors import DataError, list_some, reading

PATIENTS = "patients.csv"


def with_patients(cases: Cases, table: pathlib.Path) -> Cases:
    """The cases with the patients of a table, or as they are if there is no table.

    Raises DataError if the table does not name each case.
    """
    if not table.is_file():
        return cases
    problem, fix = "found no readable columns name and patient", "correct or delete the file"
    with reading(table, problem, fix), table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
        patient_of = {compose(row["name"].strip()): row["patient"].strip() for row in rows}

    def find(split: str, case: Case) -> str | None:
        name = compose(case.name)
        return patient_of.get(f"{split}/{name}") or patient_of.get(name)

    unknown = [
        f"{split}/{x.name}"
        for split, found in cases.items()
        for x in found
        if x.num_slices and not find(split, x)
    ]
    if unknown:
        raise DataError(
            f"{table}: has no patient for {len(unknown)} cases:\n{list_some(unknown)}\n"
            "Add a row for each: its name (or SPLIT/NAME) and patient."
        )
    return {
        split: [dataclasses.replace(x, patient=find(split, x)) for x in found]
        for split, found in cases.items()
    }


def shared_patients(cases: Cases) -> dict[str, list[str]]:
    """Patients that are in several splits, with their cases as `SPLIT/NAME`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for split, listed in cases.items():
        for case in listed:
            if case.patient is not None:
                found.setdefault(case.patient, []).append((split, case.name))
    return {
        patient: [f"{split}/{name}" for split, name in places]
        for patient, places in found.items()
        if len({split for split, _ in places}) > 1
    }
