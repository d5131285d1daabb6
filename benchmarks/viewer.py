"""The viewer in headless Chromium: time to a usable page, clicks, scrolling, memory."""

import contextlib
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import uvicorn
from ml_collections import ConfigDict

from benchmarks.results import Row
from configs import care, phantom
from usam_jax.data.phantoms import anatomy
from usam_jax.data.preprocessing import make_preparation
from usam_jax.io.nifti import write_slices
from usam_jax.models import init_variables, make_model
from usam_jax.predict import Predictor
from usam_jax.predict.model import Network
from usam_jax.utils.errors import UsageError
from usam_jax.viewer import serve
from usam_jax.viewer.case import Model, Paths
from usam_jax.viewer.desk import Desk
from usam_jax.viewer.worker import Worker

SIZE, NUM_SLICES, DRAWN_SLICES = 512, 300, 12
NUM_CLICKS, NUM_STEPS = 15, 40
TOKEN = "benchmark"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--no-first-run"),
    *("--disable-quic", "--disable-sync", "--disable-background-networking"),
    *("--disable-component-update", "--enable-precise-memory-info"),
)
# From a click to the frame after its pixels were painted, in ms.
CLICK = """async ([x, y]) => {
  const {app} = window.usamView;
  const frame = () => new Promise(requestAnimationFrame);
  const key = `axial/${app.cross[0]}`;
  const before = app.store.labels.get(key)?.data;
  const start = performance.now();
  app.addPoint(x, y, false);
  while (app.store.labels.get(key)?.data === before) await frame();
  await frame();
  return performance.now() - start;
}"""
SCROLL = """async (direction) => {
  const {app} = window.usamView;
  const frame = () => new Promise(requestAnimationFrame);
  const start = performance.now();
  app.moveTo("axial", app.cross[0] + direction);
  const wanted = String(app.cross[0]);
  do { await frame(); } while (app.views[0].canvas.dataset.drawn !== wanted);
  return performance.now() - start;
}"""


def measure_viewer() -> list[Row]:
    """Measure the page on 512x512x300 voxels, with the demo's network and with ViT-B.

    Raises UsageError if there is no Chromium or Playwright.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_volume(folder)
        demo, vit_b = phantom.get_config(), care.get_config()
        demo.model.interactive, demo.prompts.kind = True, "interactive"
        rows = measure_page(folder, demo, "the demo's network", whole=True)
        return rows + measure_page(folder, vit_b, "ViT-B", whole=False)


def write_volume(folder: pathlib.Path) -> None:
    """Write a CT of repeated phantom slices, and an empty mask to start from."""
    drawn = anatomy.make_patient(0, 0, SIZE, DRAWN_SLICES).image.astype(np.int16)
    hu = np.tile(drawn, (NUM_SLICES // DRAWN_SLICES, 1, 1))
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    write_slices(folder / "ct.nii", hu, affine)
    write_slices(folder / "empty.nii", np.zeros(hu.shape, np.uint8), affine)


def make_network(config: ConfigDict) -> Network:
    """An untrained network, which takes as long as a trained one."""
    saved = config.to_dict()
    variables = init_variables(config.model, jax.random.key(0))
    preparation = make_preparation(saved, "nnunet")
    model = make_model(config.model)
    return Network(model, variables, preparation, tuple(config.data.classes), saved, 0)


@contextlib.contextmanager
def served(folder: pathlib.Path, network: Network) -> Iterator[int]:
    """The port of a viewer of the volume."""
    out = pathlib.Path(tempfile.mkdtemp(dir=folder))
    paths = Paths(folder / "ct.nii", out / "mask.nii.gz", folder / "empty.nii")
    window = network.config["data"]["window_width"], network.config["data"]["window_level"]
    model = Model(network.classes, "benchmark", 0, window, network.interactive)
    desk = Desk(["ct"], [paths], network.classes, Worker(lambda: Predictor(network)), model)
    desk.open(0)
    bound = serve.bind(0)
    server = uvicorn.Server(serve.make_config(desk, TOKEN))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
        desk.close()


def measure_page(folder: pathlib.Path, config: ConfigDict, name: str, whole: bool) -> list[Row]:
    """Rows of clicks with a network, and if `whole` those that do not depend on the network."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise UsageError("playwright: is not installed. Run: make viewer") from error
    chromium = shutil.which("chromium")
    if chromium is None:
        raise UsageError("chromium: is not there. Run: apt-get install chromium")
    with served(folder, make_network(config)) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        start = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/#token={TOKEN}")
        page.wait_for_selector("#axial[data-drawn='150']")
        ready = time.perf_counter() - start
        page.wait_for_selector("body[data-model=ready]", timeout=300_000)
        rows = []
        if whole:
            rows.append(("viewer: page usable, 512x512x300", ready, "s"))
            scrolled = [page.evaluate(SCROLL, 1) for _ in range(NUM_STEPS)]
            rows.append(("viewer: scrolling, three views, median", median(scrolled), "ms"))
        rows += measure_clicks(page, name)
        if whole:
            heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
            rows.append(("viewer: heap of the page", heap, "MiB"))
            rows.append(("viewer: memory of the server", resident_mib(), "MiB"))
        browser.close()
    return rows


def measure_clicks(page: Any, name: str) -> list[Row]:
    """Rows of the clicks on one slice, without the first ones, which compile and encode."""
    rng = np.random.default_rng(0)
    seconds = [page.evaluate(CLICK, rng.uniform(100, 400, 2).tolist()) for _ in range(NUM_CLICKS)]
    return [
        (f"viewer: click to pixels, {name}, median", median(seconds[3:]), "ms"),
        (f"viewer: click to pixels, {name}, minimum", min(seconds[3:]), "ms"),
    ]


def median(values: list[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def resident_mib() -> float:
    """Memory of this process, which is the server with the model and the volume."""
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
