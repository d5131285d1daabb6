"""Layouts of data sets are found by file name, and `config.data` is checked."""

import pytest
from conftest import phantom_config

from configs import care, nnunet
from usam_jax.data import checks, datasets
from usam_jax.data.datasets import phantom, registry
from usam_jax.data.packed import prepare
from usam_jax.utils.errors import DataError, UsageError

KINDS = ["care", "nnunet", "packed", "phantom", "word", "word_npy"]
TOY = """
from usam_jax.data.datasets.spec import DatasetSpec

SPEC = DatasetSpec(
    lambda data: {"train": [], "test": []}, sign="toy.txt", read_classes=lambda root: ("air", "toy")
)
"""


def test_registry_finds_each_layout_by_its_file():
    assert registry.kinds() == KINDS
    assert [x for x in KINDS if registry.get_spec(x).transposed] == ["care"]


def test_registry_needs_one_file_for_a_new_layout(tmp_path, monkeypatch):
    (tmp_path / "toy_layout.py").write_text(TOY)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    (tmp_path / "toy.txt").touch()
    assert registry.detect_kind(tmp_path) == "toy_layout"
    config = nnunet.get_config()
    config.data.kind, config.data.root = "toy_layout", str(tmp_path)
    registry.name_classes(config)
    assert config.data.classes == ("air", "toy") and config.model.num_classes == 2
    assert registry.list_cases(config.data) == {"train": [], "test": []}
    assert prepare.packing_settings(config.data)["kind"] == "toy_layout"


@pytest.mark.parametrize("kind", ["mri", "registry", "spec", "../care", ""])
def test_registry_names_the_kinds_for_an_unknown_one(kind):
    config = care.get_config()
    config.data.kind = kind
    message = f"config.data.kind: got {kind!r}, expected one of {', '.join(KINDS)}"
    for function in (registry.list_cases, checks.check):
        with pytest.raises(UsageError) as caught:
            function(config.data)
        assert str(caught.value) == message


def test_detect_kind_keeps_its_order_of_precedence(tmp_path):
    signs = {
        "care": "train/train_npz",
        "word_npy": "train/npy_imgs",
        "word": "imagesVal",
        "nnunet": "dataset.json",
        "packed": "manifest.json",
    }
    with pytest.raises(
        DataError, match=r"found no data set, expected one of manifest\.json, datas"
    ):
        registry.detect_kind(tmp_path)
    for kind, sign in signs.items():
        (tmp_path / sign).mkdir(parents=True)
        assert registry.detect_kind(tmp_path) == kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("care", "train/train_npz is not there; .*test/test_npz.*; CARE is given out"),
        ("word", "imagesTr is not there; .*imagesVal labelsVal.*; WORD is given out"),
        ("word_npy", "train/npy_imgs is not there; .*; WORD is given out"),
        ("nnunet", "dataset.json is not there; .*imagesTr labelsTr"),
        ("packed", "has a manifest.json that is not there"),
    ],
)
def test_list_cases_says_what_an_absent_data_set_holds(tmp_path, kind, message):
    config = care.get_config()
    config.data.kind, config.data.root = kind, str(tmp_path)
    with pytest.raises(DataError, match=message):
        registry.list_cases(config.data)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("kind", "mri", "data.kind"),
        ("intensity", "clipped", "data.intensity"),
        ("window_width", 0.0, "data.window_width"),
        ("clahe_limit", -1.0, "data.clahe_limit"),
        ("image_size", 8, "model.image_size"),
        ("val_fraction", 1.0, "data.val_fraction"),
        ("num_folds", 1, "data.num_folds"),
        ("augment_scale", -0.1, "data.augment_scale"),
        ("augment_elastic", 30.0, "data.augment_elastic"),
        ("augment_intensity", 1.5, "data.augment_intensity"),
        ("num_workers", -1, "data.num_workers"),
        ("classes", ("background", "mean", "tumour"), "data.classes"),
    ],
)
def test_check_names_the_field_that_makes_no_sense(field, value, name):
    config = phantom_config()
    checks.check(config.data)
    data = config.data.copy_and_resolve_references()
    data[field] = value
    with pytest.raises(UsageError) as caught:
        checks.check(data)
    assert str(caught.value).startswith(f"config.{name}: got {value!r}, expected ")


def test_anatomy_decides_the_packed_phantoms():
    config = phantom_config()
    single = config.data.copy_and_resolve_references()
    loops = phantom_config(**{"data.anatomy": "loops"}).data
    # As before there was a choice, so that packed phantoms stay valid.
    assert phantom.packing_settings(single) == {"phantom": [1, 8, 3, 2]}
    assert phantom.packing_settings(loops) == {"phantom": [1, 8, 3, 2, "loops"]}
    stamps = [phantom.phantom_case(x, 0).source_stamp for x in (single, loops)]
    assert stamps == [[2, 1, 0, 32, 8], [1, 1, 0, 32, 8, "loops"]]
    single.anatomy = "tubes"
    with pytest.raises(UsageError, match=r"data\.anatomy: got 'tubes', expected single or loops"):
        checks.check(single)


def test_check_names_the_config_that_phantoms_need():
    config = care.get_config()
    config.data.kind = "phantom"
    with pytest.raises(UsageError, match=r"needs the fields of configs/phantom\.py"):
        checks.check(config.data)
