"""The viewer's HTTP API: every request, what is refused, and what saving writes."""

import json
import time

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import write_series
from viewer_server import (
    CLASSES,
    LPS,
    OBLIQUE,
    SHAPE,
    TOKEN,
    Served,
    Stub,
    make_paths,
    make_volume,
    stroke_body,
    write_volume,
)

from usam_jax.io.dicom import read_series
from usam_jax.io.dicom_seg import is_own_seg
from usam_jax.predict import Predictor, output
from usam_jax.predict.slices import Options
from usam_jax.predict.volume import Request, predict_volume
from usam_jax.utils import console
from usam_jax.utils.errors import UserError
from usam_jax.viewer import planes
from usam_jax.viewer.case import Paths, check_paths, points_path
from usam_jax.viewer.slice_state import Prompts
from usam_jax.viewer.worker import Superseded

HU, LABELS = make_volume()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a CT and its reference."""
    path = tmp_path_factory.mktemp("ct")
    write_volume(path / "ct.nii.gz", HU)
    write_volume(path / "reference.nii.gz", LABELS)
    return path


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory):
    """One server for the tests that change nothing or clean up after themselves."""
    out = tmp_path_factory.mktemp("out")
    paths = Paths(folder / "ct.nii.gz", out / "mask.nii.gz", None, folder / "reference.nii.gz")
    with Served([paths], Stub()) as served:
        served.ready()
        yield served


@pytest.fixture
def served(folder, tmp_path):
    """A new server with an interactive network."""
    with Served([Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")], Stub(True)) as served:
        served.ready()
        yield served


def undo_all(served):
    while served.get("state")["undo"]:
        served.post("undo", {})


def test_state_describes_the_volume(shared):
    state = shared.get("state")
    assert state["shape"] == list(SHAPE) and state["spacing_mm"] == [4.0, 1.5, 1.5]
    assert state["classes"] == list(CLASSES) and state["name"] == "ct.nii.gz"
    assert state["model"] == "ready" and state["promptable"] and state["has_reference"]
    assert state["model_window"] == [400.0, 40.0] and state["formats"] == ["nifti"]
    assert state["changed"] == list(range(9)) and state["filled"][0] == [0]
    assert state["volume_ml"][0] == pytest.approx((LABELS > 0).sum() * 9e-3)
    later = shared.get(f"state?since={state['revision']}")
    assert later["changed"] == [] and later["revision"] == state["revision"]


@pytest.mark.parametrize("axis", planes.AXES)
def test_planes_are_those_of_the_volume(shared, axis):
    case = shared.desk.case
    for index in range(0, planes.count(SHAPE, axis), 7):
        for kind, volume, dtype in (
            ("image", case.source.hu, "<i2"),
            ("labels", case.session.labels, np.uint8),
            ("reference", case.reference, np.uint8),
        ):
            expected = planes.plane(volume, axis, index)
            np.testing.assert_array_equal(shared.plane(kind, axis, index, dtype), expected.ravel())


def test_planes_have_the_head_up_and_the_nose_left():
    volume = np.arange(24).reshape(2, 3, 4)  # slices, rows from front to back, columns
    assert planes.plane(volume, "coronal", 0)[0, 0] == volume[1, 0, 0]
    assert planes.plane(volume, "sagittal", 3).shape == (2, 3)
    assert planes.plane(volume, "sagittal", 3)[-1, 0] == volume[0, 0, 3]
    with pytest.raises(IndexError):
        planes.plane(volume, "axial", 2)


@pytest.mark.parametrize(
    ("axes", "rotation"), [("RAS", None), ("PSR", None), ("SLA", None), ("RAS", OBLIQUE)]
)
def test_slices_of_all_orientations_are_shown_alike(tmp_path, axes, rotation):
    write_volume(tmp_path / "ct.nii.gz", HU, axes, rotation)
    with Served([make_paths(tmp_path)]) as served:
        shown = served.plane("image", "axial", 4, "<i2").reshape(SHAPE[1:])
        np.testing.assert_array_equal(shown, HU[..., 4].T)
        warnings = served.get("state")["warnings"]
        assert any("oblique" in x for x in warnings) == (rotation is not None)


def test_click_changes_the_slice_at_once(shared):
    labels = shared.click(0, [[5, 6, 1], [30.25, 20, 0]], sequence=7)
    assert labels[6, 5] == 1 and (labels > 0).sum() == 25
    assert shared.get("prompts/0") == {"points": [[5, 6, 1], [30.25, 20, 0]], "box": None}
    state = shared.get("state")
    assert state["prompted"] == [0] and state["undo"] == "negative point on slice 0"
    np.testing.assert_array_equal(shared.plane("labels", "axial", 0), labels.ravel())
    undone = shared.post("undo", {})
    assert undone["slice"] == 0 and undone["what"] == "negative point on slice 0"
    assert shared.get("prompts/0")["points"] == [] and undone["redo"]
    shared.post("redo", {})
    np.testing.assert_array_equal(shared.plane("labels", "axial", 0), labels.ravel())
    undo_all(shared)


def test_box_is_sorted_and_prompts_without_points_need_no_model(shared):
    labels = shared.click(1, [], [20, 30, 10, 15])
    assert (labels == 2).sum() == 16 * 11
    assert shared.get("prompts/1")["box"] == [10, 15, 20, 30]
    decoded = shared.desk.worker.predictor.network.decoded
    assert not shared.click(1, []).any() and shared.get("prompts/1")["box"] is None
    assert shared.desk.worker.predictor.network.decoded == decoded
    undo_all(shared)


def test_reply_has_sequence_revision_and_time(shared):
    body = {"slice": 0, "points": [[5, 6, 1]], "box": None, "sequence": 12}
    _, headers, _ = shared.request("POST", "/api/prompts", body)
    assert headers["X-Sequence"] == "12" and float(headers["X-Decode-Ms"]) > 0
    assert int(headers["X-Revision"]) == shared.get("state")["revision"]
    undo_all(shared)


def test_brush_and_eraser_paint_the_mask(shared):
    before = shared.plane("labels", "axial", 4).reshape(SHAPE[1:])
    mask = np.array([[1, 0], [1, 1]], np.uint8)
    state = shared.paint(4, [3, 5, 2, 2], 2, mask)
    assert state["edited"] == [4] and state["undo"] == "brush (tumour) on slice 4"
    shared.paint(4, [12, 13, 4, 4], 0)
    expected = before.copy()
    expected[5:7, 3:5][mask > 0] = 2
    expected[13:17, 12:16] = 0
    np.testing.assert_array_equal(shared.plane("labels", "axial", 4), expected.ravel())
    assert shared.post("slice", {"slice": 4, "action": "clear_edits"})["edited"] == []
    undo_all(shared)
    np.testing.assert_array_equal(shared.plane("labels", "axial", 4), before.ravel())


def test_locked_slice_refuses_clicks_and_strokes(shared):
    assert shared.post("slice", {"slice": 2, "action": "lock"})["locked"] == [2]
    body = {"slice": 2, "points": [[5, 6, 1]], "box": None, "sequence": 1}
    assert "slice 2 is locked" in shared.post("prompts", body, 409)["error"]
    assert "locked" in shared.paint(2, [0, 0, 1, 1], 1, status=409)["error"]
    assert shared.post("slice", {"slice": 2, "action": "unlock"})["locked"] == []
    undo_all(shared)


@pytest.mark.parametrize("name", ["undo", "redo"])
def test_undo_and_redo_of_nothing_are_refused(served, name):
    assert f"nothing to {name}" in served.post(name, {}, 409)["error"]


def test_propagation_stops_at_protected_slices(served):
    for slice_ in range(9):  # an automatic mask would hide what propagation does
        served.desk.case.session.set_automatic(slice_, np.zeros(SHAPE[1:], np.uint8))
    served.click(4, [[30, 30, 1]])
    served.paint(6, [0, 0, 1, 1], 1)
    served.post("slice", {"slice": 1, "action": "lock"})
    served.post("propagate", {"slice": 4, "first": 0, "last": 8}, 202)
    state = served.wait(lambda x: x["busy"] is None)
    assert state["propagated"] == [2, 3, 5]
    assert state["undo"] == "propagation from slice 4"
    assert served.post("undo", {})["propagated"] == []


def test_propagation_is_stopped_on_request(served):
    served.desk.worker.predictor.network.delay = 0.05
    served.click(4, [[30, 30, 1]])
    served.post("propagate", {"slice": 4, "first": 0, "last": 8}, 202)
    state = served.wait(lambda x: x["propagated"])
    assert state["busy"]["what"] == "propagation" and state["busy"]["total"] == 8
    assert (
        "second propagation"
        in served.post("propagate", {"slice": 4, "first": 0, "last": 8}, 422)["error"]
    )
    served.post("stop", {}, 202)
    time.sleep(0.2)
    state = served.get("state")
    assert state["busy"] is None and 1 <= len(state["propagated"]) <= 3


def test_clicks_refine_what_was_propagated(served):
    served.click(4, [[30, 30, 2]])
    served.post("propagate", {"slice": 4, "first": 4, "last": 5}, 202)
    before = served.wait(lambda x: x["busy"] is None) and served.desk.case.session.labels_of(5)
    assert (before == 2).any()
    labels = served.click(5, [[44, 4, 1]])
    kept = (before > 0) & (labels == before)
    assert labels[4, 44] == 1 and kept.sum() > 0.5 * (before > 0).sum()
    served.post("slice", {"slice": 5, "action": "clear_prompts"})
    assert served.get("state")["propagated"] == []


def test_points_file_prompts_a_new_session(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")
    with Served([paths], Stub(True)) as served:
        served.ready()
        click_all(served)
        served.post("save", {"format": "nifti"})
        labels = served.desk.case.session.labels.copy()
    other = Paths(folder / "ct.nii.gz", tmp_path / "other.nii.gz")
    with Served([other], Stub(True), points=points_path(paths.mask)) as served:
        served.ready()
        served.wait(lambda x: x["prompted"] == [3, 6, 7])
        np.testing.assert_array_equal(served.desk.case.session.labels, labels)


def test_click_preempts_the_automatic_mask(folder, tmp_path):
    stub = Stub()
    stub.delay = 0.05
    with Served([Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")], stub) as served:
        served.wait(lambda x: x["model"] == "ready")
        labels = served.click(0, [[5, 6, 1]])
        state = served.get("state")
        assert labels[6, 5] == 1 and state["busy"]["what"] == "automatic mask"
        assert state["busy"]["done"] < 9


def test_model_trained_without_prompts_is_said(shared):
    network = shared.desk.worker.predictor.network
    assert not shared.get("state")["trained_without_prompts"]
    network.config = {"prompts": {"kind": "none"}}
    assert shared.get("state")["trained_without_prompts"]
    network.config = {"prompts": {"kind": "mixed"}}


def test_encode_is_accepted(shared):
    shared.post("encode", {"slice": 3}, 202)
    shared.wait(lambda _: shared.desk.worker.slices.cache.get(3) is not None)


def test_comparison_scores_classes_and_slices(shared):
    found = shared.get("comparison")
    labels, reference = shared.desk.case.session.labels, shared.desk.case.reference
    assert found["wrong"] == (labels != reference).sum((1, 2)).tolist()
    assert found["dice"][0] is None and 0 < found["dice"][4] < 1
    assert found["worst"][0] is None and set(found["worst"][3:5]) <= {1, 2}
    assert found["classes"][1]["Dice"] == 0 and found["classes"][0]["volume"] > 0


BAD = [
    ("prompts", {"slice": 9, "points": [], "box": None, "sequence": 1}, "slice: got 9"),
    ("prompts", {"slice": True, "points": [], "box": None, "sequence": 1}, "slice: got True"),
    ("prompts", {"slice": 0, "points": [[1, 2, 3]], "box": None, "sequence": 1}, "class: got 3"),
    ("prompts", {"slice": 0, "points": [[48, 2, 1]], "box": None, "sequence": 1}, "x: got 48"),
    ("prompts", {"slice": 0, "points": [["1", 2, 1]], "box": None, "sequence": 1}, "x: got 1"),
    ("prompts", {"slice": 0, "points": [[1, 2]], "box": None, "sequence": 1}, "3 numbers"),
    ("prompts", {"slice": 0, "points": {}, "box": None, "sequence": 1}, "points: expected"),
    ("prompts", {"slice": 0, "points": [], "box": [1, 2], "sequence": 1}, "4 numbers"),
    ("prompts", {"slice": 0}, "expected the keys"),
    ("prompts", b"[1]", "got list"),
    ("prompts", b"{", "got no JSON"),
    ("prompts", b"[" * 10**5, "got no JSON"),
    ("slice", {"slice": 0, "action": "delete"}, "action: got 'delete'"),
    ("propagate", {"slice": 3, "first": 4, "last": 8}, "slice: got 3"),
    ("save", {"format": "../x"}, "format: got '../x'"),
    ("open", {"case": 1}, "case: got 1"),
    ("paint", b"\x00", "fewer than 4 bytes"),
    ("paint", b"\xff\xff\xff\xffxx", "JSON of 4294967295 bytes"),
    (
        "paint",
        stroke_body({"slice": 0, "box": [0, 0, 2, 2], "label": 1}, np.ones(3, np.uint8)),
        "got 3 pixels",
    ),
    (
        "paint",
        stroke_body({"slice": 0, "box": [0, 0, 1, 1], "label": 3}, np.ones(1, np.uint8)),
        "label: got 3",
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD, ids=[x[2] for x in BAD])
def test_bad_request_is_refused(shared, path, body, message):
    revision = shared.get("state")["revision"]
    assert message in shared.post(path, body, 400)["error"]
    assert shared.get("state")["revision"] == revision


def test_stroke_outside_the_slice_is_refused(shared):
    assert "inside the slice" in shared.paint(0, [47, 0, 2, 1], 1, status=409)["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/static/../server.py", 404),
        ("/static/%2e%2e/server.py", 404),
        ("/static/..%2fserver.py", 404),
        ("/static/server.py", 404),
        ("/static/index.html%00", 404),
        ("/etc/passwd", 404),
        ("/api/image/axial/9", 400),
        ("/api/image/axial/-1", 400),
        ("/api/image/axial/1e3", 400),
        ("/api/image/axial/%D9%A3", 400),
        ("/api/image/oblique/1", 400),
        ("/api/file/axial/1", 404),
        ("/api/prompts/9", 400),
        ("/api/state?since=x", 400),
        ("/api/nothing", 404),
    ],
)
def test_address_that_does_not_exist(shared, path, status):
    assert shared.request("GET", path)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X_Token": None}, 401),
        ({"X_Token": TOKEN + "x"}, 401),
        ({"X_Token": "é"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:9999"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_guard_checks_token_host_and_origin(shared, headers, status):
    assert shared.request("GET", "/api/state", **headers)[0] == status


def test_guard_refuses_preflight_and_accepts_own_origin(shared):
    origin = f"http://127.0.0.1:{shared.port}"
    assert shared.request("GET", "/api/state", Origin=origin)[0] == 200
    status, headers, _ = shared.request("OPTIONS", "/api/state", Origin="http://evil.example")
    assert status == 403 and "Access-Control-Allow-Origin" not in headers


def test_guard_limits_bodies(shared):
    assert shared.request("POST", "/api/paint", bytes(2 * 2**20 + 1))[0] == 413

    def chunks():
        for _ in range(3):
            yield bytes(2**20)

    assert shared.request("POST", "/api/paint", chunks())[0] == 413


@pytest.mark.parametrize("path", ["/", "/static/nothing", "/api/state", "/api/nothing"])
def test_every_response_has_the_security_headers(shared, path):
    _, headers, _ = shared.request("GET", path)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer" and "Server" not in headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


CLICKS = {3: ([[30.5, 20.25, 2], [13, 14, 0]], None), 6: ([[8, 30, 1]], None)}


def click_all(served):
    """Click on two slices, one point after the other, and draw a box on a third."""
    for number, (points, _) in CLICKS.items():
        for count in range(1, len(points) + 1):
            served.click(number, points[:count])
    served.click(7, [], [4, 6, 12, 10])


def expected_labels(source, interactive):
    """What `Predictor` gives for the prompts of `click_all`."""
    predictor = Predictor(Stub(interactive))
    labels = np.zeros(source.hu.shape, np.uint8)
    for number, hu in enumerate(source.hu):
        encoded = predictor.encode_slice(hu, source.geometry.spacing_mm[1:])
        points = CLICKS.get(number, ([], None))[0]
        box = [4, 6, 12, 10] if number == 7 else None
        if interactive:
            labels[number], previous = predictor.predict(box=box, encoded=encoded)
            for count in range(1, len(points) + 1):
                labels[number], previous = predictor.predict(
                    [x[:2] for x in points[:count]],
                    encoded=encoded,
                    point_classes=[x[2] for x in points[:count]],
                    previous=previous,
                )
        else:
            labels[number], _ = predictor.predict(
                [x[:2] for x in points], [int(x[2] > 0) for x in points], box, encoded=encoded
            )
    return labels


@pytest.mark.parametrize("interactive", [False, True], ids=["published", "interactive"])
@pytest.mark.parametrize(
    ("axes", "rotation"),
    [("RAS", None), ("LPS", None), ("AIR", None), ("LPS", OBLIQUE)],
    ids=["RAS", "LPS", "flipped", "oblique"],
)
def test_saved_mask_equals_predictor_and_points(tmp_path, axes, rotation, interactive):
    path, mask = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(path, HU, axes, rotation)
    stub = Stub(interactive)
    with Served([make_paths(tmp_path)], stub) as served:
        served.ready()
        click_all(served)
        saved = served.post("save", {"format": "nifti"})
        state = served.get("state")
        assert saved["path"] == str(mask) and state["saved_revision"] == state["revision"]
    source = output.read_source(path)
    expected = expected_labels(source, interactive)
    output.write_mask(tmp_path / "expected.nii.gz", source, expected)
    ct, found, right = (nibabel.load(x) for x in (path, mask, tmp_path / "expected.nii.gz"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(right.dataobj))
    np.testing.assert_array_equal(found.affine, ct.affine)
    about = json.loads((tmp_path / "mask.json").read_text())
    assert about["labels"] == {name: i for i, name in enumerate(CLASSES)}
    assert about["prompts"] == "prompted slices [3, 6, 7]" and about["checkpoint_step"] == 7
    request = Request(Options(), str(points_path(mask)))
    again = tmp_path / "again.nii.gz"
    predict_volume(stub, path, again, request)
    np.testing.assert_array_equal(np.asarray(nibabel.load(again).dataobj), right.dataobj)


def test_closing_names_the_autosave_of_unsaved_actions_alone(folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(console, "info", said.append)
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")
    with Served([paths], Stub(True)) as served:
        served.ready()
    assert said == []
    with Served([paths], Stub(True)) as served:
        served.ready()
        click_all(served)
        served.post("save", {"format": "nifti"})
        served.post("undo", {})  # the file still has what was undone
    (line,) = said
    assert line.startswith("not saved as a mask yet: the edits are kept in")


def test_dicom_is_saved_as_seg_and_nifti(tmp_path):
    affine = LPS @ np.diag([1, 1, -1, 1.0])  # files from the head down
    write_series(tmp_path / "series", np.ascontiguousarray(HU[..., ::-1]), affine)
    paths = Paths(tmp_path / "series", tmp_path / "mask.dcm")
    with Served([paths], Stub(), names=["series"]) as served:
        assert served.ready()["formats"] == ["dicom-seg", "nifti"]
        click_all(served)
        assert served.post("save", {"format": "dicom-seg"})["path"] == str(paths.mask)
        assert served.post("save", {"format": "nifti"})["path"].endswith("mask.nii.gz")
        labels = served.desk.case.session.labels.copy()
    source = output.read_source(paths.ct)
    np.testing.assert_array_equal(labels, expected_labels(source, False))
    seg = pydicom.dcmread(paths.mask)
    assert is_own_seg(paths.mask) and not is_own_seg(read_series(paths.ct).files[0])
    (tmp_path / "mask.json").unlink()
    (tmp_path / "mask.nii.gz").rename(tmp_path / "kept.nii.gz")
    check_paths(paths._replace(mask=tmp_path / "mask.nii.gz"), named=True)  # the SEG is its own
    (tmp_path / "kept.nii.gz").rename(tmp_path / "mask.nii.gz")
    assert {x.SegmentAlgorithmType for x in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    files = {x: i for i, x in enumerate(uids(read_series(paths.ct).files))}
    found = np.zeros((9, *SHAPE[1:]), np.uint8)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        source_uid = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[files[source_uid.ReferencedSOPInstanceUID]][pixels > 0] = number
    in_file_order = output.from_slices(labels, source.geometry.affine).transpose(2, 1, 0)
    np.testing.assert_array_equal(found, in_file_order)
    mask = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask.transpose(2, 1, 0), in_file_order)


def uids(files):
    return [pydicom.dcmread(x, stop_before_pixels=True).SOPInstanceUID for x in files]


def test_points_file_is_removed_with_the_last_prompt(served, tmp_path):
    path = points_path(tmp_path / "mask.nii.gz")
    served.click(0, [[5, 6, 1]])
    served.post("save", {"format": "nifti"})
    assert json.loads(path.read_text())["points"][0]["class"] == "rectum"
    served.post("undo", {})
    served.post("save", {"format": "nifti"})
    assert not path.exists()


def test_mask_that_cannot_be_written_keeps_the_edits(served, tmp_path):
    served.paint(0, [0, 0, 2, 2], 1)
    (tmp_path / ".tmp.mask.nii.gz").mkdir()
    assert "cannot be written" in served.post("save", {"format": "nifti"}, 507)["error"]
    (tmp_path / ".tmp.mask.nii.gz").rmdir()
    state = served.get("state")
    assert state["edited"] == [0] and state["saved_revision"] < state["revision"]
    served.post("save", {"format": "nifti"})
    assert np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj).any()


def test_restart_restores_masks_prompts_and_undo(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")
    with Served([paths], Stub(True)) as served:
        served.ready()
        click_all(served)
        served.paint(3, [1, 1, 3, 3], 2)
        served.post("undo", {})
        before, labels = served.get("state"), served.desk.case.session.labels.copy()
    with Served([paths], Stub(True)) as served:
        state = served.wait(lambda x: x["model"] == "ready")
        assert state["busy"] is None  # the automatic mask was kept
        np.testing.assert_array_equal(served.desk.case.session.labels, labels)
        for name in ("prompted", "edited", "undo", "redo"):
            assert state[name] == before[name]
        assert any("restored 6 actions" in x for x in state["warnings"])
        served.post("redo", {})
        assert served.desk.case.session.labels[3, 1, 1] == 2


def test_viewer_without_model_says_so(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz", folder / "reference.nii.gz")
    with Served([paths]) as served:
        state = served.get("state")
        assert state["model"] == "none" and not state["promptable"] and not state["busy"]
        body = {"slice": 0, "points": [[5, 6, 1]], "box": None, "sequence": 1}
        assert "without --checkpoint" in served.post("prompts", body, 503)["error"]
        assert (
            "without --checkpoint"
            in served.post("propagate", {"slice": 0, "first": 0, "last": 8}, 503)["error"]
        )
        served.paint(0, [0, 0, 2, 2], 1)
        served.post("save", {"format": "nifti"})
    found = np.asarray(nibabel.load(paths.mask).dataobj)
    assert (found == LABELS).mean() > 0.99 and (found[:2, :2, 0] == 1).all()


def test_network_without_prompts_refuses_clicks(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")
    with Served([paths], Stub(promptable=False)) as served:
        state = served.ready()
        assert not state["promptable"] and state["volume_ml"][0] > 0
        body = {"slice": 0, "points": [[5, 6, 1]], "box": None, "sequence": 1}
        assert "expected none" in served.post("prompts", body, 422)["error"]


def test_model_that_fails_to_load_is_reported(folder, tmp_path, capsys):
    class Broken(Stub):
        def __getattribute__(self, name):
            if name == "classes":
                raise ValueError("weights are torn")
            return super().__getattribute__(name)

    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")
    with Served([paths], Broken()) as served:
        state = served.wait(lambda x: x["model"] == "failed")
        assert state["problem"] == "weights are torn"
        body = {"slice": 0, "points": [[5, 6, 1]], "box": None, "sequence": 1}
        assert "weights are torn" in served.post("prompts", body, 503)["error"]


def test_work_list_opens_one_volume_at_a_time(folder, tmp_path):
    paths = [
        Paths(folder / "ct.nii.gz", tmp_path / "a.nii.gz"),
        Paths(folder / "ct.nii.gz", tmp_path / "b.nii.gz"),
        Paths(tmp_path / "missing.nii.gz", tmp_path / "c.nii.gz"),
    ]
    with Served(paths, Stub(), names=["a", "b", "c"]) as served:
        served.ready()
        served.paint(0, [0, 0, 2, 2], 1)
        served.post("open", {"case": 1}, X_Case="0")
        assert served.get("state")["name"] == "b" and served.get("state")["edited"] == []
        stale = served.post("slice", {"slice": 0, "action": "lock"}, 409, X_Case="0")
        assert "another volume was opened" in stale["error"]
        assert "missing" in served.post("open", {"case": 2}, 422)["error"]
        assert served.get("state")["name"] == "b"
        served.post("save", {"format": "nifti"})
        names = {x["name"]: (x["saved"], x["open"]) for x in served.get("cases")["cases"]}
        assert names == {"a": (False, False), "b": (True, True), "c": (False, False)}
        served.post("open", {"case": 0})
        assert served.get("state")["edited"] == [0]


def test_newer_prompts_supersede_older_ones(served):
    worker = served.desk.worker
    worker.predictor.network.delay = 0.1
    served.desk.case.session.has_automatic[:] = True
    futures = [worker.predict(2, Prompts(((float(x), 5.0, 1),))) for x in (4, 8, 12)]
    futures[-1].result(timeout=10)
    assert isinstance(futures[1].exception(timeout=10), Superseded)
    assert served.get("prompts/2")["points"] == [[12, 5, 1]]


def test_reply_says_whether_the_last_click_replaces_another(served):
    points = [[10, 10, 1], [10.25, 9.75, 0], [30, 20, 2]]
    for count, replaces in ((1, "0"), (2, "1"), (3, "0")):
        body = {"slice": 2, "points": points[:count], "box": None, "sequence": count}
        _, headers, _ = served.request("POST", "/api/prompts", body)
        assert headers["x-replaces"] == replaces


def test_click_counts_though_its_page_is_gone(served):
    served.desk.worker.predictor.network.delay = 0.05
    assert served.desk.worker.predict(2, Prompts(((4.0, 5.0, 1),))).cancel()
    served.wait(lambda x: x["prompted"] == [2])
    assert served.get("state")["problem"] == ""


def test_clicks_refine_a_given_mask_and_its_origin_is_saved(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "m.nii.gz", folder / "reference.nii.gz")
    with Served([paths], Stub(True)) as served:
        state = served.ready()
        assert state["base"] == "given mask"
        given = served.plane("labels", "axial", 3).reshape(SHAPE[1:])
        served.post("save", {"format": "nifti"})
        described = json.loads((tmp_path / "m.json").read_text())
        assert described["prompts"] == "from the mask reference.nii.gz"
        assert described["checkpoint_step"] is None
        clicked = served.click(3, [[40, 5, 1]])
        assert (clicked[3:8, 38:43] == 1).all()
        # The stand-in network removes the first column of the mask that it starts from.
        columns = np.flatnonzero(given.any(0))
        np.testing.assert_array_equal(clicked[10:, columns[1:]], given[10:, columns[1:]])
        served.post("save", {"format": "nifti"})
        described = json.loads((tmp_path / "m.json").read_text())
        assert described["prompts"].endswith("; prompted slices [3]")
        assert described["checkpoint_step"] == 7


def test_work_list_starts_with_a_volume_that_can_be_opened(folder, tmp_path, capsys):
    (tmp_path / "bad.nii.gz").write_bytes(b"no volume")
    paths = [Paths(x, tmp_path / f"{i}.nii.gz") for i, x in enumerate((tmp_path / "bad.nii.gz",))]
    with pytest.raises(UserError):
        Served(paths)
    paths.append(Paths(folder / "ct.nii.gz", tmp_path / "1.nii.gz"))
    with Served(paths, names=["bad", "good"]) as served:
        assert served.get("state")["name"] == "good"
    assert "bad cannot be opened" in capsys.readouterr().err


def test_points_for_an_earlier_session_are_said_to_be_unread(folder, tmp_path):
    points = tmp_path / "p.json"
    points.write_text('{"space": "voxel", "points": [{"at": [20, 20, 3], "class": "rectum"}]}')
    paths = make_paths(tmp_path)._replace(ct=folder / "ct.nii.gz")
    for expected in (False, True):
        with Served([paths], Stub(True), points=points) as served:
            state = served.wait(lambda x: x["busy"] is None and x["prompted"])
            assert any("p.json was not read" in x for x in state["warnings"]) == expected


def test_comparison_has_no_distance_to_an_empty_mask(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "m.nii.gz", None, folder / "reference.nii.gz")
    with Served([paths]) as served:  # without a model the mask is empty
        found = served.get("comparison")["classes"]
    assert [x["HD95"] for x in found] == [None, None]
    assert all(x["volume"] == 0 < x["reference_volume"] for x in found)
