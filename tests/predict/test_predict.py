"""Prediction: masks of CT files on their own voxels, and labels of clicks on one slice."""

import itertools
import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, phantom_config, save_run
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from usam_jax.data.phantoms.nifti_export import write_nnunet
from usam_jax.data.preprocessing import Preparation
from usam_jax.io import nifti
from usam_jax.io.geometry import Geometry
from usam_jax.models import Prompts, init_variables, make_model
from usam_jax.predict import Predictor, clicks, output, slices
from usam_jax.predict import model as predict_model
from usam_jax.predict.model import NO_CLICKS, Clicks, load_network
from usam_jax.predict.slices import Options, predict_slices
from usam_jax.predict.volume import Request, predict_volume
from usam_jax.utils.errors import DataError, UsageError, WeightsError
from usam_jax.weights import saved_config

AXES = [
    "".join(x)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for x in itertools.product(*order)
]
OBLIQUE = np.array([[0.96, 0.2, -0.2], [-0.17, 0.97, 0.17], [0.23, -0.13, 0.96]])


class Bright:
    """Stands in for a network: class 1 on bright pixels, 2 on brighter ones, 3 on its points."""

    classes = ("background", "bright", "brighter", "point")
    step, slices, dims = 7, 1, 2
    interactive = False

    def __init__(self, size, transposed=False):
        self.preparation = Preparation(size, 40.0, 400.0, "clip", 0.0, transposed)

    def encode(self, images):
        return images

    def decode(self, images, given):
        labels = (images > 120).astype(np.uint8) + (images > 200)
        for label, one in zip(labels, given, strict=True):
            for x, y in np.rint(one.points_xy).astype(int):
                label[y, x] = 3
        return labels, np.eye(4, dtype=np.float32)[labels]


def make_pattern(shape):
    """HU and labels [column row slice] of an object that no turn or flip maps onto itself."""
    labels = np.zeros(shape, np.uint8)
    w, h, n = shape
    labels[w // 4 : w // 2, h // 3 : h // 2, 2 : n - 3] = 1
    labels[w // 4 : w // 4 + 5, h // 3 : h - 8, 2:5] = 2
    hu = np.choose(labels, [-1000, 60, 240]).astype(np.int16)
    return hu, labels


def write(path, hu, axes, affine, dtype=np.int16, slope=1.0, inter=0.0):
    """Write `hu` [column row slice], which has an LPS `affine`, to a file with the axes `axes`."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    voxels = nibabel.orientations.apply_orientation(hu, turn)
    turned = affine @ inv_ornt_aff(turn, hu.shape)
    image = nibabel.Nifti1Image(np.zeros(voxels.shape, np.int16), turned)
    header = image.header.as_byteswapped(">" if np.dtype(dtype).byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    header["descrip"] = b"scanner 7"
    header.set_xyzt_units("mm", "sec")
    image = nibabel.Nifti1Image((voxels - inter) / slope, turned, header)
    image.header.set_slope_inter(slope, inter)
    image.set_sform(turned, code=1)
    image.set_qform(turned, code=1)
    nibabel.save(image, path)
    return voxels


def predict(path, out, size, **options):
    source = output.read_source(path)
    labels = np.zeros(source.hu.shape, np.uint8)
    for done in predict_slices(Bright(size), source.hu, source.geometry, {}, Options(**options)):
        labels[done.number] = done.labels
    output.write_mask(out, source, labels)
    return nibabel.load(path), nibabel.load(out)


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axes", AXES)
def test_mask_matches_its_ct_in_all_orientations(tmp_path, axes, rotation):
    hu, labels = make_pattern((40, 40, 9))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, -1.5, 4.0])
    affine[:3, 3] = (50, -20, 700)
    voxels = write(tmp_path / "ct.nii.gz", hu, axes, affine)
    ct, mask = predict(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz", 40)
    found = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(found, np.select([voxels > 200, voxels > 0], [2, 1], 0))
    assert found.dtype == np.uint8 and set(np.unique(found)) == set(np.unique(labels))
    np.testing.assert_array_equal(mask.affine, ct.affine)
    a, b = sitk.ReadImage(tmp_path / "ct.nii.gz"), sitk.ReadImage(tmp_path / "mask.nii.gz")
    assert (a.GetOrigin(), a.GetSpacing(), a.GetDirection(), a.GetSize()) == (
        b.GetOrigin(),
        b.GetSpacing(),
        b.GetDirection(),
        b.GetSize(),
    )


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("dtype", "slope", "inter"), [("<i2", 1, 0), (">i2", 1, -1024), ("<i2", 2, -500)]
)
def test_mask_keeps_header_of_scaled_and_big_endian_files(tmp_path, end, dtype, slope, inter):
    hu, labels = make_pattern((40, 36, 9))
    affine = np.diag([-0.8, -1.2, 5.0, 1.0])  # pixels higher than wide
    write(tmp_path / f"ct{end}", hu, "LPS", affine, np.dtype(dtype), slope, inter)
    ct, mask = predict(tmp_path / f"ct{end}", tmp_path / f"mask{end}", 96)
    found = np.asarray(mask.dataobj)
    overlap = 2 * ((found > 0) & (labels > 0)).sum() / ((found > 0).sum() + (labels > 0).sum())
    assert overlap > 0.98  # resampled to square pixels and back
    for field in ("descrip", "pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x"):
        np.testing.assert_array_equal(mask.header[field], ct.header[field])
    assert mask.header.endianness == ct.header.endianness
    assert mask.header.get_slope_inter() in ((1.0, 0.0), (None, None))


def test_predict_slices_transposes_for_transposed_models(tmp_path):
    hu, labels = make_pattern((40, 32, 9))
    write(tmp_path / "ct.nii", hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    source = output.read_source(tmp_path / "ct.nii")
    seen = []
    model = Bright(40, transposed=True)
    model.encode = lambda images: seen.append(images) or images
    given = {3: Clicks(np.array([[30.0, 5.0]], np.float32), np.ones(1, np.int32))}
    found = {
        x.number: x.labels
        for x in predict_slices(model, source.hu, source.geometry, given, Options())
    }
    upright = labels.transpose(2, 1, 0)
    np.testing.assert_array_equal(found[4], upright[4])
    assert found[3][5, 30] == 3  # the point and its label are transposed alike
    first = seen[0][3]
    np.testing.assert_array_equal(first[:, 4:-4] > 120, upright[3].T > 0)


def test_read_clicks_and_read_box_find_their_voxels(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([-1.5, -1.5, 4.0])
    hu, _ = make_pattern((40, 40, 9))
    voxels = write(tmp_path / "ct.nii", hu, "PIR", affine)
    source = output.read_source(tmp_path / "ct.nii")
    at = [int(x) for x in np.argwhere(voxels > 200)[3]]
    world = (nibabel.load(tmp_path / "ct.nii").affine @ [*at, 1])[:3].tolist()
    for space, place in (("voxel", at), ("world", world)):
        path = tmp_path / f"{space}.json"
        path.write_text(
            json.dumps({"space": space, "points": [{"at": place}, {"at": place, "label": 0}]})
        )
        ((number, found),) = clicks.read_clicks(path, source.geometry).items()
        (x, y), _ = np.rint(found.points_xy).astype(int)
        assert source.hu[number, y, x] == 240
        assert found.point_labels.tolist() == [1, 0]
    corners = np.argwhere(voxels > 0)
    low, high = corners.min(0), corners.max(0)
    text = ",".join(map(str, [*high, *low]))  # the corners may come in any order
    boxes = clicks.read_box(text, source.geometry)
    inside = source.hu > 0
    assert sorted(boxes) == np.flatnonzero(inside.any((1, 2))).tolist()
    x0, y0, x1, y1 = next(iter(boxes.values())).box
    rows, columns = np.flatnonzero(inside.any((0, 2))), np.flatnonzero(inside.any((0, 1)))
    assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1], rows[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"space": "voxel", "points": [{"at": [1, 2, 90]}]}', "lies outside the volume"),
        ('{"space": "world", "points": [{"at": [900, 0, 0]}]}', "lies outside the volume"),
        ('{"points": [{"at": [1, 2, 3]}]}', "expected the keys space"),
        ('{"space": "voxel", "points": [{"xy": [1, 2, 3]}]}', r"points\[0\]: got \['xy'\]"),
        ('{"space": "voxel", "points": [{"at": [1, 2]}]}', "expected three numbers"),
        ('{"space": "voxel", "points": [{"at": [1, 2, 3], "label": 2}]}', "label is 2"),
        ('{"space": "mm", "points": []}', "space is 'mm'"),
        ('{"space": "voxel"}', "holds no points"),
        ("[1]", "got list, expected the keys"),
        ("{", "not JSON in line 1, column 2"),
        ('{"space": "voxel", "points": null}', "points is None, expected a list"),
        ('{"space": "voxel", "points": [{"at": [1, 2, 8.5]}]}', "lies outside the volume"),
    ],
)
def test_read_clicks_names_the_fault_of_a_points_file(tmp_path, content, message):
    hu, _ = make_pattern((40, 40, 9))
    write(tmp_path / "ct.nii", hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    geometry = nifti.read_geometry(tmp_path / "ct.nii")
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        clicks.read_clicks(tmp_path / "points.json", geometry)
    with pytest.raises(UsageError, match="expected i0,j0,k0,i1,j1,k1"):
        clicks.read_box("1,2,3", geometry)


class Follower(Bright):
    """Stands in for a promptable network: only finds bright pixels if a point is on them."""

    classes = ("background", "bright", "brighter")

    def decode(self, images, given):
        labels = (images > 120).astype(np.uint8) + (images > 200)
        for label, one in zip(labels, given, strict=True):
            at = np.rint(one.points_xy).astype(int)
            if not any(label[y, x] for x, y in at):
                label[:] = 0
        return labels, np.eye(3, dtype=np.float32)[labels]


def write_points(path, source, places, label=1):
    """Write a points file in mm for `places` (column, row, slice) of an LPS volume."""
    affine = np.array(source.geometry.affine)
    points = [{"at": (affine @ [*at, 1])[:3].tolist(), "label": label} for at in places]
    path.write_text(json.dumps({"space": "world", "points": points}))
    return str(path)


def test_predict_volume_propagates_and_writes_mask_last(tmp_path, monkeypatch):
    hu, labels = make_pattern((40, 40, 16))
    hu[..., 9], labels[..., 9] = -1000, 0
    write(tmp_path / "ct.nii.gz", hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    source = output.read_source(tmp_path / "ct.nii.gz")
    x, y, _ = np.argwhere(labels == 1)[0]
    points = write_points(tmp_path / "points.json", source, [(x + 2, y + 2, 6)])
    mask = tmp_path / "mask.nii.gz"
    options = Options(propagate=True, last=8)
    request = Request(options, points, None, True)
    entry = predict_volume(Follower(40), tmp_path / "ct.nii.gz", mask, request)
    expected = np.where(np.arange(16) < 9, labels, 0)
    found = np.asarray(nibabel.load(mask).dataobj)
    np.testing.assert_array_equal(found, expected)
    spread = nibabel.load(tmp_path / "mask_probabilities.nii.gz").get_fdata()
    np.testing.assert_array_equal(spread.argmax(-1), found)
    assert entry["slices"] == 8  # slices 8 to 1; nothing is found in slice 1
    voxel_ml = 1.5 * 1.5 * 4 / 1000
    assert entry["volume_ml"]["bright"] == pytest.approx((found == 1).sum() * voxel_ml)
    about = json.loads((tmp_path / "mask.json").read_text())
    assert about["prompts"] == "on slices [6], propagated to their neighbours"
    with pytest.raises(UsageError, match=r"prompts on slice 6 of .* asks for 7 to 8"):
        predict_volume(
            Follower(40), tmp_path / "ct.nii.gz", mask, Request(options._replace(first=7), points)
        )
    monkeypatch.setattr(output, "write_probabilities", fail)
    with pytest.raises(OSError, match="full"):
        predict_volume(Follower(40), tmp_path / "ct.nii.gz", tmp_path / "other.nii.gz", request)
    assert not list(tmp_path.glob("*other*"))


def fail(*_arguments):
    raise OSError("full")


def test_predict_volume_applies_box_and_keep_largest(tmp_path):
    hu, labels = make_pattern((40, 40, 9))
    hu[2:6, 30:36, 3] = 60  # a second, smaller bright component
    write(tmp_path / "ct.nii", hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    seen = []

    class Boxed(Bright):
        def decode(self, images, given):
            seen.extend(x.box for x in given)
            return super().decode(images, given)

    request = Request(Options(keep_largest=True), None, "5,6,2,20,30,4")
    entry = predict_volume(Boxed(40), tmp_path / "ct.nii", tmp_path / "m.nii", request)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "m.nii").dataobj), labels)
    assert [x is not None for x in seen[:9]] == [False, False, True, True, True] + [False] * 4
    np.testing.assert_array_equal(seen[2], [5, 6, 20, 30])
    assert entry["warnings"] == []


def test_preparation_maps_points_like_resized_pixels():
    for transposed in (False, True):
        preparation = Preparation(32, 40.0, 400.0, "clip", 0.0, transposed)
        shape, pixel_mm = (48, 64), (1.0, 1.0)  # resized by half and padded with rows of air
        hu = np.full(shape, -1000.0)
        hu[20:22, 40:42] = 400
        image = preparation.from_hu(hu, pixel_mm)
        (row,), (column,) = np.nonzero(image > 200)
        (x, y) = preparation.points_in(np.array([[40.5, 20.5]]), shape, pixel_mm)[0]
        assert (x, y) == pytest.approx((column, row))
        labels = (image > 200).astype(np.uint8)
        back = preparation.labels_back(labels, shape, pixel_mm)
        np.testing.assert_array_equal(back, hu > 0)
        spread = preparation.probabilities_back(
            np.eye(2, dtype=np.float32)[labels], shape, pixel_mm
        )
        assert spread.shape == (48, 64, 2)
        assert spread[20:22, 40:42, 1].min() > 0.5 > spread[:16, :, 1].max()


def test_predict_slices_mirrors_clicks_of_the_flipped_pass():
    hu = np.full((2, 40, 40), -1000, np.int16)
    affine = tuple(map(tuple, np.eye(4).tolist()))
    geometry = Geometry((40, 40, 2), "LPS", affine, hu.shape, (4.0, 1.0, 1.0))
    given = {1: Clicks(np.array([[6.0, 9.0]], np.float32), np.ones(1, np.int32))}
    options = Options(2, flip=True)
    found = {x.number: x.labels for x in predict_slices(Bright(40), hu, geometry, given, options)}
    assert np.argwhere(found[1]).tolist() == [[9, 6]] and not found[0].any()


def test_decode_swaps_points_for_rowcol_models(monkeypatch, workdir):
    loaded = predict_model.load_network(workdir[0])
    loaded.config["prompts"]["order"] = "rowcol"
    seen = []
    monkeypatch.setattr(predict_model, "_decode", lambda *x: seen.append(x[-1]))
    loaded.decode(None, [Clicks(np.array([[7.0, 30.0]], np.float32), np.ones(1, np.int32))])
    assert seen[0]["points_xy"][0, 0].tolist() == [30, 7]


def test_find_inputs_rejects_volumes_that_share_a_mask(tmp_path):
    hu, _ = make_pattern((40, 40, 9))
    for name in ("a.nii", "a.nii.gz"):
        write(tmp_path / name, hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    with pytest.raises(DataError, match="would have the same mask"):
        output.find_inputs(tmp_path)
    with pytest.raises(UsageError, match="expected a folder for the masks"):
        output.require_output(tmp_path / "m.nii.gz", several=True)


def test_predict_slices_propagates_until_nothing_is_found(tmp_path):
    hu, labels = make_pattern((40, 40, 16))
    hu[..., 9], labels[..., 9] = -1000, 0  # a gap that stops the propagation
    write(tmp_path / "ct.nii", hu, "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    source = output.read_source(tmp_path / "ct.nii")
    x, y, _ = np.argwhere(labels == 1)[0]
    given = {6: Clicks(np.array([[x + 2, y + 2]], np.float32), np.ones(1, np.int32))}

    def run(options):
        done = predict_slices(Follower(40), source.hu, source.geometry, given, options)
        return [(x.number, x.labels) for x in done]

    alone = [number for number, found in run(Options()) if found.any()]
    assert alone == [6]
    propagated = run(Options(propagate=True))
    numbers = [number for number, _ in propagated]
    assert numbers == [6, 7, 8, 9, 5, 4, 3, 2, 1]  # stops at 9 and 1, which are empty
    for number, found in propagated:
        np.testing.assert_array_equal(found, labels[..., number].T)


def test_predict_slices_range_flip_and_keep_largest():
    hu = np.full((10, 40, 40), -1000, np.int16)
    hu[:, 5:10, 5:12] = 60
    geometry = Geometry(
        (40, 40, 10), "LPS", tuple(map(tuple, np.eye(4))), hu.shape, (4.0, 1.0, 1.0)
    )
    options = Options(batch_size=4, first=2, last=7)
    found = {x.number: x for x in predict_slices(Bright(40), hu, geometry, {}, options, True)}
    assert sorted(found) == [2, 3, 4, 5, 6, 7]
    assert found[7].probabilities.shape == (40, 40, 4)
    flipped = predict_slices(Bright(40), hu, geometry, {}, options._replace(flip=True))
    for x in flipped:
        np.testing.assert_array_equal(x.labels, found[x.number].labels)
    box = Clicks(
        np.array([[3.0, 4.0]], np.float32), np.ones(1, np.int32), np.float32([1, 2, 10, 20])
    )
    mirrored = slices.mirror(box, 40)
    np.testing.assert_array_equal(mirrored.points_xy, [[36, 4]])
    np.testing.assert_array_equal(mirrored.box, [29, 2, 38, 20])
    labels = np.zeros((4, 20, 20), np.uint8)
    labels[0, 2:8, 2:8], labels[3, 15:18, 15:18], labels[3, 2:5, 2:5] = 1, 1, 2
    kept = slices.keep_largest(labels, 3)
    assert (kept == 1).sum() == 36 and (kept == 2).sum() == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no volume"), "not a readable NIfTI"),
        (
            lambda path: nibabel.save(
                nibabel.Nifti1Image(np.zeros((40, 40, 2, 3), np.int16), np.eye(4)), path
            ),
            "4 dimensions",
        ),
        (
            lambda path: nibabel.save(
                nibabel.Nifti1Image(np.zeros((20, 40, 5), np.int16), np.diag([-1, -1, 1, 1])), path
            ),
            "slices of 40 x 20 pixels",
        ),
        (
            lambda path: nibabel.save(
                nibabel.Nifti1Image(np.full((40, 40, 5), np.nan, np.float32), np.eye(4)), path
            ),
            "NaN",
        ),
    ],
)
def test_read_source_names_a_file_that_is_not_a_ct(tmp_path, make, message):
    path = tmp_path / "ct.nii"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        output.read_source(path)
    assert str(path) in str(caught.value)


def test_values_warning_flags_values_that_are_not_hu():
    assert "values from 0 to 1" in output.values_warning(np.linspace(0, 1, 9))
    assert not output.values_warning(np.array([-1000, 300]))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with a small untrained model, that model and its variables."""
    folder = tmp_path_factory.mktemp("run")
    config = phantom_config()
    model = make_model(config.model)
    variables = init_variables(config.model, jax.random.key(3))
    save_run(folder, config, variables)
    return folder, model, variables


def test_predictor_equals_the_model_and_compiles_once(workdir):
    folder, model, variables = workdir
    predictor = Predictor.load(folder)
    rng = np.random.default_rng(0)
    image = rng.random((32, 32), np.float32)
    predictor.set_image(image)
    points = np.array([[4.0, 9.0], [20.0, 7.0]])
    labels, probabilities = predictor.predict(points, [1, 0])
    exact = np.floor(image * 255) / 255  # rounded as packed slices are
    prompts = Prompts(jnp.asarray(points, jnp.float32)[None], jnp.array([[1, 0]]))
    logits = jax.jit(model.apply)(variables, jnp.asarray(exact, jnp.float32)[None], prompts)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits)[0], atol=1e-4)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))
    before = predict_model._encode._cache_size(), predict_model._decode._cache_size()
    for count in range(4):
        predictor.predict(
            rng.uniform(0, 31, (count, 2)), None, [1, 2, 20, 21] if count % 2 else None
        )
    predictor.set_image(rng.random((32, 32)))
    predictor.predict()
    assert (predict_model._encode._cache_size(), predict_model._decode._cache_size()) == before


def test_predictor_says_that_many_points_compile_once_more(workdir, capsys):
    predict_model.say_growth.cache_clear()
    predictor = Predictor.load(workdir[0])
    predictor.set_image(np.zeros((32, 32)))
    predictor.predict(np.ones((32, 2)))
    assert "compil" not in capsys.readouterr().err
    before = predict_model._decode._cache_size()
    for count in (33, 64):
        predictor.predict(np.ones((count, 2)))
    said = capsys.readouterr().err
    assert said == "more than 32 points on a slice: compiling the decoder for up to 64\n"
    assert predict_model._decode._cache_size() == before + 1


def test_predictor_returns_labels_on_the_slices_own_pixels(workdir):
    predictor = Predictor.load(workdir[0])
    predictor.set_slice(np.random.default_rng(0).uniform(-1000, 400, (50, 70)), (0.9, 0.7))
    labels, probabilities = predictor.predict([[69.0, 49.0]], [1], [0, 0, 69, 49])
    assert labels.shape == (50, 70) and probabilities.shape == (50, 70, 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_predictor_keeps_one_image_per_thread(workdir):
    predictor = Predictor.load(workdir[0])
    images = np.random.default_rng(1).random((4, 32, 32))
    alone = []
    for image in images:
        predictor.set_image(image)
        alone.append(predictor.predict([[5, 5]])[1])
    found, barrier = {}, threading.Barrier(4)

    def work(i):
        predictor.set_image(images[i])
        barrier.wait()  # all threads have set their image before any of them predicts
        found[i] = predictor.predict([[5, 5]])[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], alone[i])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.predict(), UsageError, "got no slice"),
        (lambda p: p.set_image(np.zeros((3, 40, 40))), DataError, "expected \\[h w\\]"),
        (lambda p: p.set_image(np.zeros((20, 40))), DataError, "of 32 pixels or more"),
        (lambda p: p.set_image(np.full((40, 40), np.nan)), DataError, "NaN"),
        (
            lambda p: p.set_image(np.linspace(-1000, 400, 1600).reshape(40, 40)),
            DataError,
            "set_slice",
        ),
    ],
)
def test_predictor_rejects_what_is_not_a_slice(workdir, call, error, message):
    with pytest.raises(error, match=message):
        call(Predictor.load(workdir[0]))


def test_predictor_rejects_invalid_clicks(workdir):
    predictor = Predictor.load(workdir[0])
    predictor.set_image(np.zeros((40, 60)))
    for arguments, message in (
        (([[60, 3]],), r"\(x, y\) = \[60.0, 3.0\] lies outside the image of 60 x 40"),
        (([[1, 3]], [2]), "expected 1 or 0 for each of 1 points"),
        (([[1, 2, 3], [4, 5, 6]],), "expected \\[n 2\\]"),
        ((None, None, [5, 5, 2, 9]), "expected x0, y0, x1, y1"),
    ):
        with pytest.raises(UsageError, match=message):
            predictor.predict(*arguments)


def test_pad_clicks_grows_for_many_clicks():
    many = Clicks(np.zeros((40, 2), np.float32), np.ones(40, np.int32))
    arrays = predict_model.pad_clicks([many, NO_CLICKS])
    assert arrays["points_xy"].shape == (2, 64, 2)
    assert arrays["prompts_given"].sum(1).tolist() == [40, 0]


def test_predict_folder_skips_bad_volume_and_existing_masks(workdir, tmp_path):
    folder, *_ = workdir
    write_nnunet(tmp_path / "data", num_train=2, num_test=0, size=40, num_slices=5)
    images, out, report = tmp_path / "data" / "imagesTr", tmp_path / "masks", tmp_path / "run.json"
    bad = images / "broken.nii.gz"
    bad.write_bytes(min(images.iterdir()).read_bytes()[:900])
    command = ["-i", images, "-o", out, f"--checkpoint={folder}", f"--report={report}"]
    done = run_smallest(*command, "--save-probabilities")
    assert done.returncode == 4, done.stderr
    assert f"1 of 3 volumes failed: {bad}" in done.stderr and "Traceback" not in done.stderr
    entries = json.loads(report.read_text())["volumes"]
    assert sorted(x["status"] for x in entries.values()) == ["done", "done", "failed"]
    for path in images.glob("phantom*"):
        name = path.name.removesuffix("_0000.nii.gz")  # as nnU-Net names its masks
        ct, mask = nibabel.load(path), nibabel.load(out / f"{name}.nii.gz")
        np.testing.assert_array_equal(mask.affine, ct.affine)
        assert mask.shape == ct.shape
        spread = nibabel.load(out / f"{name}_probabilities.nii.gz")
        assert spread.shape == (*ct.shape, 3)
        assert np.abs(spread.get_fdata().sum(-1) - 1).max() < 0.01
        names = json.loads((out / f"{name}.json").read_text())
        assert names["labels"] == {"background": 0, "normal rectum": 1, "tumour": 2}
        assert names["prompts"] == "none (automatic)"
    assert not list(out.glob("broken*")) and not list(out.glob(".tmp*"))
    bad.unlink()
    again = run_smallest(*command, "--skip_existing")
    assert again.returncode == 0, again.stderr
    assert "0 predicted, 2 there already" in again.stderr


# The variant "smallest" exists in the tests only, so the program has to be given it.
SMALLEST = (
    "import runpy, sys; from usam_jax.models import usam; "
    "usam.VARIANTS['smallest'] = usam.Variant(48, 2, 2, (1,), window=7, dim=32); "
    "runpy.run_module('usam_jax.predict', run_name='__main__', alter_sys=True)"
)


def run_smallest(*arguments):
    return subprocess.run(
        [sys.executable, "-c", SMALLEST, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-i", "nowhere", "-o", "m.nii.gz", "--checkpoint=x"), 3, "nowhere: does not exist"),
        (("-i", "{ct}", "-o", "{ct}", "--checkpoint=x"), 2, "is a CT to predict"),
        (("-i", "{ct}", "-o", "{ct}/m.nii", "--checkpoint={run}"), 2, "cannot be created"),
        (("-i", "{ct}", "-o", "m.nii", "--checkpoint=nowhere"), 5, "no finished checkpoint"),
    ],
)
def test_predict_usage_error_exits_with_its_code(workdir, tmp_path, arguments, code, message):
    ct = tmp_path / "ct.nii"
    write(ct, make_pattern((40, 40, 9))[0], "LPS", np.diag([-1.5, -1.5, 4.0, 1.0]))
    before = ct.read_bytes()
    done = run_smallest(*(x.format(ct=ct, run=workdir[0]) for x in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert ct.read_bytes() == before


@pytest.mark.parametrize("changes", [{"model": None}, {"data": {}}, {"data": "x"}, {"model": {}}])
def test_damaged_config_of_a_run_is_named(tmp_path, changes):
    saved = saved_config.to_json(phantom_config("unet"))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(saved | changes))
    with pytest.raises(WeightsError, match=r"config\.json: cannot be used"):
        load_network(tmp_path)
