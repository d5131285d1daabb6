"""Generated patients (`usam_jax/data/phantoms`): a data set without files."""

import functools
from typing import Any

from ml_collections import ConfigDict

from usam_jax.data.case import Case, Cases, Slices
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.phantoms import anatomy
from usam_jax.data.pixels import window_hu
from usam_jax.utils.errors import UsageError


def list_cases(data: ConfigDict) -> Cases:
    """The patients of train and test, `data.num_patients` of each, numbered consecutively."""
    num_train, num_test = data.num_patients
    numbers = {"train": range(num_train), "test": range(num_train, num_train + num_test)}
    return {split: [phantom_case(data, i) for i in numbers[split]] for split in numbers}


def phantom_case(data: ConfigDict, number: int) -> Case:
    """The case of patient `number`, painted when it is loaded."""
    name = f"phantom_{number:04d}"
    arguments = (data.phantom_seed, number, data.image_size, data.slices_per_patient)
    window = (data.window_level, data.window_width)
    load_fn = functools.partial(load_phantom, *arguments, data.anatomy, *window)
    stamp = [anatomy.VERSIONS[data.anatomy], *arguments, *name_anatomy(data)]
    geometry = anatomy.patient_geometry(*arguments, data.anatomy)
    return Case(name, name, data.slices_per_patient, stamp, load_fn, geometry)


def load_phantom(
    seed: int,
    number: int,
    size: int,
    num_slices: int,
    kind: str = "single",
    level: float = 40.0,
    width: float = 400.0,
) -> Slices:
    """The slices of a patient: grey float32[n h w] and labels uint8[n h w]."""
    made = anatomy.make_patient(seed, number, size, num_slices, kind)
    return window_hu(made.image, level, width), made.labels


def packing_settings(data: ConfigDict) -> dict[str, Any]:
    """The fields that decide the patients. Raises UsageError if the config has none."""
    if "num_patients" not in data:
        raise UsageError(
            "config.data.kind=phantom needs the fields of configs/phantom.py; use that config"
        )
    if data.anatomy not in anatomy.VERSIONS:
        raise UsageError(
            f"config.data.anatomy: got {data.anatomy!r}, expected {' or '.join(anatomy.VERSIONS)}"
        )
    counts = [data.slices_per_patient, *data.num_patients]
    return {"phantom": [data.phantom_seed, *counts, *name_anatomy(data)]}


def name_anatomy(data: ConfigDict) -> list[str]:
    """The anatomy, for stamps. `single` adds nothing, so that older packed phantoms stay valid."""
    return [] if data.anatomy == "single" else [data.anatomy]


SPEC = DatasetSpec(list_cases, config_name="phantom", packing_settings=packing_settings)
