"""The flags of `usam-view`: what it serves, and what it refuses before any work."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT
from viewer_server import CLASSES, make_volume, stroke_body, write_volume

from usam_jax.utils import cli
from usam_jax.utils.errors import UsageError
from usam_jax.viewer import __main__ as command
from usam_jax.viewer import serve
from usam_jax.viewer.case import Paths, check_paths

HU, LABELS = make_volume()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a CT and a mask."""
    monkeypatch.chdir(tmp_path)
    write_volume(tmp_path / "ct.nii.gz", HU)
    write_volume(tmp_path / "truth.nii.gz", LABELS)
    return tmp_path


@pytest.fixture
def served(monkeypatch):
    """The settings that would be served."""
    found = []
    monkeypatch.setattr(serve, "serve", found.append)
    return found


def run(*arguments) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():
            given = ["usam-view", *map(str, arguments)]
            return cli.run(command.run_viewer, given, needs_config=False)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_mask_lies_in_the_current_folder_by_default(folder, served):
    assert run("-i", folder / "ct.nii.gz", "--reference=truth.nii.gz", "--nobrowser") == 0
    (settings,) = served
    assert settings.paths[0].mask == pathlib.Path("ct_mask.nii.gz") and not settings.browser
    assert settings.paths[0].reference == pathlib.Path("truth.nii.gz")
    assert settings.classes[0] == "background" and settings.model is None


def test_classes_come_from_the_class_list_of_a_mask(folder, served):
    labels = {name: i for i, name in enumerate(CLASSES)}
    (folder / "truth.json").write_text(json.dumps({"labels": labels}))
    assert run("-i", "ct.nii.gz", "--mask=truth.nii.gz") == 0
    assert served[0].classes == CLASSES
    assert run("-i", "ct.nii.gz", "--classes=none,liver") == 0
    assert served[1].classes == ("none", "liver")


def test_folder_becomes_a_work_list(folder, served):
    (folder / "cts").mkdir()
    (folder / "refs").mkdir()
    for name in ("b", "a"):
        write_volume(folder / "cts" / f"{name}.nii.gz", HU)
    write_volume(folder / "refs" / "b.nii.gz", LABELS)
    assert run("-i", "cts", "--reference=refs") == 0
    (settings,) = served
    assert settings.names == ("a", "b")
    assert settings.paths[1].mask == pathlib.Path("cts_masks/b.nii.gz")
    assert settings.paths[0].reference is None and settings.paths[1].reference is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected -i"),
        (["-i", "ct.nii.gz", "extra"], 2, "expected -i"),
        (["-i", "missing.nii.gz"], 3, "does not exist"),
        (["-i", "notes.txt"], 3, "expected NAME.nii.gz"),
        (["-i", "ct.nii.gz", "-o", "ct.nii.gz"], 2, "is the CT"),
        (["-i", "ct.nii.gz", "-o", "m.png"], 2, "expected NAME.nii.gz"),
        (["-i", "ct.nii.gz", "-o", "truth.nii.gz", "--reference=truth.nii.gz"], 2, "the reference"),
        (["-i", "ct.nii.gz", "--reference=no.nii.gz"], 3, "--reference: no.nii.gz is not a file"),
        (["-i", "ct.nii.gz", "--points=p.json"], 2, "expected --checkpoint"),
        (["-i", "ct.nii.gz", "--classes=a,b", "--checkpoint=run"], 2, "--classes"),
        (["-i", "ct.nii.gz", "--classes=a,a"], 2, "--classes"),
        (["-i", "ct.nii.gz", "--checkpoint=run"], 5, "run does not exist"),
        (["-i", "ct.nii.gz", "-o", "m.dcm"], 2, "expected .nii or .nii.gz"),
        (["-i", "ct.nii.gz", "--port=70000"], 2, "port"),
    ],
)
def test_bad_flags_are_refused_before_any_work(folder, served, capsys, arguments, code, message):
    (folder / "notes.txt").write_text("x")
    before = sorted(folder.iterdir())
    assert run(*arguments) == code
    assert message in capsys.readouterr().err
    assert not served and sorted(folder.iterdir()) == before


def test_foreign_file_in_the_place_of_the_mask_is_kept(folder, served, capsys):
    write_volume(folder / "ct_mask.nii.gz", LABELS)
    assert run("-i", "ct.nii.gz") == 2
    assert "ct_mask.nii.gz: exists and is not a mask" in capsys.readouterr().err
    assert run("-i", "ct.nii.gz", "-o", "ct_mask.nii.gz") == 0


def test_format_that_was_not_named_replaces_no_foreign_file(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"")
    write_volume(tmp_path / "m.nii.gz", LABELS)
    with pytest.raises(UsageError, match=r"m\.nii\.gz: exists and is not a mask"):
        check_paths(Paths(tmp_path / "series", tmp_path / "m.dcm"), named=True)
    check_paths(Paths(tmp_path / "series", tmp_path / "m.nii.gz"), named=True)


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        (np.full((40, 40, 3), 7, np.int16), 3, "holds the labels"),
        (np.zeros((40, 40, 4), np.int16), 3, "has the shape"),
    ],
)
def test_mask_that_does_not_fit_is_refused(folder, capsys, values, code, message):
    write_volume(folder / "ct.nii.gz", np.zeros((40, 40, 3), np.int16))
    write_volume(folder / "bad.nii.gz", values)
    assert run("-i", "ct.nii.gz", "--mask=bad.nii.gz", "--nobrowser") == code
    assert message in capsys.readouterr().err


def test_port_in_use_is_refused(folder, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run("-i", "ct.nii.gz", f"--port={port}", "--nobrowser") == 2
    assert f"--port: got {port}" in capsys.readouterr().err


def start(*arguments):
    """A viewer in a process of its own, its port and its token."""
    command_line = [sys.executable, "-m", "usam_jax.viewer", "--nobrowser", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    # Ctrl-C is ignored by tests in the background, and processes would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/#token=(\S+)", line):
            return process, int(found[1]), found[2]
    raise AssertionError("the viewer did not start")


def send(port, token, method, path, body=None):
    """Send a request to a viewer and return its JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, f"/api/{path}", body, {"X-Token": token})
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content


def test_nothing_is_lost_by_sigkill(folder):
    process, port, token = start("-i", folder / "ct.nii.gz")
    for number in range(9):
        content = {"slice": number, "box": [number, 2, 3, 2], "label": 1 + number % 3}
        send(port, token, "POST", "paint", stroke_body(content, np.ones(6, np.uint8)))
    state = send(port, token, "POST", "undo")
    assert "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text()
    time.sleep(0.5)  # all but the last second is promised; a stroke is on the disk at once
    process.kill()
    process.communicate()
    process, port, token = start("-i", folder / "ct.nii.gz")
    again = send(port, token, "GET", "state")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "the edits are kept in" in errors
    for name in ("edited", "undo", "redo", "volume_ml", "filled"):
        assert again[name] == state[name]
    assert len(again["edited"]) == 8 and "restored 10 actions" in again["warnings"][-1]


def test_browser_gets_the_token_through_a_private_file(monkeypatch):
    seen = []
    monkeypatch.setattr(serve.webbrowser, "open", seen.append)
    with serve.opened("http://127.0.0.1:1/#token=a&b"):
        path = pathlib.Path(seen[0].removeprefix("file://"))
        assert path.stat().st_mode & 0o777 == 0o600
        assert "url=http://127.0.0.1:1/#token=a&amp;b" in path.read_text()
    assert not path.exists() and "token" not in seen[0]
