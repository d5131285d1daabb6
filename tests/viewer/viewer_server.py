"""A viewer's server in a thread, its client, and a stand-in network, for tests."""

import gzip
import http.client
import json
import struct
import threading
import time

import nibabel
import numpy as np
import uvicorn
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from usam_jax.data.preprocessing import Preparation
from usam_jax.predict.predictor import Predictor
from usam_jax.viewer import serve
from usam_jax.viewer.case import Model, Paths
from usam_jax.viewer.desk import Desk
from usam_jax.viewer.worker import Worker

CLASSES = ("background", "rectum", "tumour")
TOKEN = "token"
SHAPE = (9, 40, 48)
LPS = np.array([[-1.5, 0, 0, 50], [0, -1.5, 0, -20], [0, 0, 4.0, 700], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.96, 0.2, -0.2], [-0.17, 0.97, 0.17], [0.23, -0.13, 0.96]])


class Stub:
    """Stands in for a network: class 1 on bright pixels, a square of each point's class.

    If it is interactive, it starts from the previous prediction, shrunk by its first column, so
    that the order of clicks matters.
    """

    classes, step, dims, slices = CLASSES, 7, 2, 1

    def __init__(self, interactive=False, promptable=True, size=48):
        self.interactive, self.promptable = interactive, promptable
        self.config = {"prompts": {"kind": "mixed"}}
        self.preparation = Preparation(size, 40.0, 400.0, "clip", 0.0, False)
        self.delay, self.decoded = 0.0, 0

    def require_promptable(self, what):
        from usam_jax.utils.errors import UsageError

        if not self.promptable:
            raise UsageError(f"{what}: got prompts, expected none")

    def require_interactive(self, _what):
        assert self.interactive

    def encode(self, images):
        return images

    def decode(self, images, given):
        time.sleep(self.delay)
        self.decoded += 1
        labels = (images > 120).astype(np.uint8)
        for label, one in zip(labels, given, strict=True):
            if one.previous is not None:
                label[:] = one.previous.argmax(-1)
                columns = np.flatnonzero(label.any(0))
                label[:, columns.min() if columns.size else 0] = 0
            numbers = one.point_labels if one.point_classes is None else one.point_classes
            for (x, y), c in zip(np.rint(one.points_xy).astype(int), numbers, strict=True):
                label[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = c
            if one.box is not None:
                x0, y0, x1, y1 = np.rint(one.box).astype(int)
                label[y0 : y1 + 1, x0 : x1 + 1] = 2
        return labels, np.eye(3, dtype=np.float32)[labels]


def make_volume(shape=SHAPE):
    """HU and labels [column row slice] of an object that no turn or flip maps onto itself."""
    n, h, w = shape
    labels = np.zeros((w, h, n), np.uint8)
    labels[w // 4 : w // 2, h // 3 : h // 2, 2 : n - 3] = 1
    labels[w // 4 : w // 4 + 5, h // 3 : h - 8, 2:5] = 2
    rng = np.random.default_rng(0)
    hu = np.choose(labels, [-1000, 60, 240]) + rng.integers(0, 20, labels.shape)
    return hu.astype(np.int16), labels


def write_volume(path, voxels, axes="LPS", rotation=None):
    """Write voxels [column row slice] to a NIfTI file with the axes `axes`."""
    affine = LPS.copy()
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    turned = affine @ inv_ornt_aff(turn, voxels.shape)
    array = nibabel.orientations.apply_orientation(voxels, turn)
    nibabel.save(nibabel.Nifti1Image(array, turned), path)


def make_model(stub):
    return Model(CLASSES, "stub", stub.step, (400.0, 40.0), stub.interactive)


class Served:
    """A viewer of the volumes `paths`, served in a thread, and its client. A context manager."""

    def __init__(self, paths, stub=None, names=None, load_fn=None, model=None, points=None):
        model = make_model(stub) if stub else model
        worker = Worker((lambda: Predictor(stub)) if stub else load_fn)
        names = names or [x.ct.name for x in paths]
        classes = model.classes if model else CLASSES
        self.desk = Desk(names, paths, classes, worker, model, points=points)
        self.desk.open_first()
        self.bound = serve.bind(0)
        self.port = self.bound.getsockname()[1]
        self.server = uvicorn.Server(serve.make_config(self.desk, TOKEN))
        self.thread = threading.Thread(target=self.server.run, args=([self.bound],))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_error):
        self.server.should_exit = True
        self.thread.join()
        self.bound.close()
        self.desk.close()

    def request(self, method, path, body=None, **headers):
        """Status, headers and body of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {"X-Token": TOKEN} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, data, {k: v for k, v in given.items() if v is not None})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def get(self, path, **headers):
        status, _, body = self.request("GET", f"/api/{path}", **headers)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, body, status=200, **headers):
        found, _, content = self.request("POST", f"/api/{path}", body, **headers)
        assert found == status, content
        return json.loads(content)

    def plane(self, kind, axis, index, dtype=np.uint8):
        """A plane as flat pixels."""
        status, headers, body = self.request("GET", f"/api/{kind}/{axis}/{index}")
        assert status == 200, body
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return np.frombuffer(body, dtype)

    def click(self, number, points, box=None, sequence=1):
        """Labels uint8[h w] after prompts."""
        body = {"slice": number, "points": points, "box": box, "sequence": sequence}
        status, _, content = self.request("POST", "/api/prompts", body)
        assert status == 200, content
        shape = self.desk.case.session.plane_shape
        return np.frombuffer(gzip.decompress(content), np.uint8).reshape(shape)

    def paint(self, number, box, label, mask=None, status=200):
        """Paint a rectangle or `mask`."""
        _, _, w, h = box
        pixels = np.ones((h, w), np.uint8) if mask is None else mask
        return self.post(
            "paint", stroke_body({"slice": number, "box": box, "label": label}, pixels), status
        )

    def wait(self, condition, timeout_s=20.0):
        """Wait until `condition` of the state holds, and return the state."""
        end = time.monotonic() + timeout_s
        while not condition(state := self.get("state")):
            assert time.monotonic() < end, state
            time.sleep(0.01)
        return state

    def ready(self):
        """Wait until the model is loaded and the automatic mask is complete."""
        return self.wait(lambda x: x["model"] == "ready" and x["busy"] is None)


def stroke_body(content, pixels):
    """The body of a stroke."""
    head = json.dumps(content).encode()
    return struct.pack("<I", len(head)) + head + pixels.tobytes()


def make_paths(folder, name="ct.nii.gz", **more):
    """The files of a case whose mask lies in the same folder."""
    return Paths(folder / name, folder / "mask.nii.gz", **more)
