"""The viewer's page in headless Chromium: real clicks, keys and pixels."""

import os
import shutil
import time

import numpy as np
import pytest
from viewer_server import TOKEN, Served, Stub, make_volume, write_volume

from usam_jax.viewer.case import Paths

pytestmark = pytest.mark.browser
SHAPE = (12, 60, 70)
HU, LABELS = make_volume(SHAPE)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    "--disable-software-rasterizer",  # without it Chromium has no WebGL: the page needs none
    *("--disable-background-networking", "--disable-component-update"),
)
RECTUM, TUMOUR = (230, 159, 0), (86, 180, 233)


def skip(reason):
    """Skip the page's tests, or fail if CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        skip("playwright is not installed (make viewer)")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        skip("there is no Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct")
    write_volume(path / "ct.nii.gz", HU)
    write_volume(path / "reference.nii.gz", np.roll(LABELS, 3, axis=0))
    return path


@pytest.fixture
def served(folder, tmp_path):
    paths = Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz", None, folder / "reference.nii.gz")
    with Served([paths], Stub(True, size=70)) as served:
        served.ready()
        yield served


class Page:
    """A page of the viewer, driven with mouse and keys."""

    def __init__(self, browser, served, ratio=1):
        self.served = served
        self.context = browser.new_context(
            viewport={"width": 1300, "height": 800}, device_scale_factor=ratio
        )
        self.problems, self.hosts = [], set()
        self.page = self.open_tab()

    def open_tab(self):
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda x: self.problems.append(x.text) if x.type == "error" else None)
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        page.goto(f"http://127.0.0.1:{self.served.port}/#token={TOKEN}")
        page.wait_for_selector("body[data-ready]", timeout=20000)
        self.page = page
        self.wait(lambda: self.drawn() == "6")
        return page

    def wait(self, condition, timeout_s=15.0):
        """Wait until a condition holds and nothing is being sent."""
        end = time.monotonic() + timeout_s
        while not (condition() and self.get("app.store.api.pending + app.store.loading.size") == 0):
            assert time.monotonic() < end, self.problems
            self.page.wait_for_timeout(20)

    def get(self, expression):
        return self.page.evaluate(
            f"(() => {{ const {{app}} = window.usamView; return {expression}; }})()"
        )

    def drawn(self):
        """The axial slice that is on the screen."""
        return self.page.get_attribute("#axial", "data-drawn")

    def at(self, x, y, axis="axial"):
        """Where a point of a plane lies in the window."""
        return self.page.evaluate(
            "(a) => window.usamView.clientOf(...a)", [axis, float(x), float(y)]
        )

    def click(self, x, y, axis="axial", **options):
        self.page.mouse.click(*self.at(x, y, axis), **options)

    def drag(self, start, end, axis="axial", button="left"):
        self.page.mouse.move(*self.at(*start, axis))
        self.page.mouse.down(button=button)
        self.page.mouse.move(*self.at(*end, axis), steps=6)
        self.page.mouse.up(button=button)

    def key(self, *names):
        for name in names:
            self.page.keyboard.press(name)

    def settle(self):
        """Wait until the page shows the server's newest state."""
        self.wait(lambda: self.get("app.store.state.revision") == self.revision())
        self.page.wait_for_timeout(60)

    def revision(self):
        return self.served.desk.case.session.revision

    def pixel(self, x, y, axis="axial"):
        """Colour (r, g, b) of a plane's pixel on the screen."""
        script = """([axis, x, y]) => {
          const view = window.usamView.app.views.find((v) => v.axis === axis);
          const p = view.place();
          const at = [p.left + (x + 0.5) * p.sx, p.top + (y + 0.5) * p.sy].map(Math.round);
          return [...view.context.getImageData(...at, 1, 1).data].slice(0, 3);
        }"""
        return self.page.evaluate(script, [axis, float(x), float(y)])

    def text(self, selector):
        return self.page.inner_text(selector)

    def labels(self, number=6):
        return self.served.desk.case.session.labels_of(number)


@pytest.fixture
def page(browser, served):
    """A page whose errors and requests to other hosts fail the test."""
    opened = Page(browser, served)
    yield opened
    opened.context.close()
    assert not opened.problems and opened.hosts == {f"127.0.0.1:{served.port}"}


def blend(colour, grey, share=0.45):
    return [grey + (c - grey) * share for c in colour]


def test_pure_functions_of_the_page(page):
    labels = np.array([[0, 1, 1], [2, 1, 0]], np.uint8)
    script = """async ([labels]) => {
      const {outlines} = await import("/static/outline.js");
      const {stampSegment, classColour} = await import("/static/draw.js");
      const {placement, toPlane, toCanvas, crossFromPlane, crossInPlane} = await import("/static/view.js");
      const mask = new Uint8Array(25);
      const box = stampSegment(mask, 5, 5, [1, 1], [3, 1], 1);
      const grid = {columns: 7, rows: 5, dx: 0.5, dy: 2, count: 3};
      const place = placement(grid, {width: 300, height: 200}, 1.7, [3, -2]);
      const cross = [2, 3, 4], shape = [7, 8, 9];
      return {
        outlines: Object.fromEntries(outlines(new Uint8Array(labels), 3, 2)),
        mask: [...mask], box,
        back: toPlane(place, ...toCanvas(place, 1.25, 3.5)),
        same: ["axial", "coronal", "sagittal"].map((axis) =>
          crossFromPlane(axis, ...crossInPlane(axis, cross, shape), cross, shape)),
        colours: [1, 2, 9].map(classColour),
      };
    }"""
    found = page.page.evaluate(script, [labels.ravel().tolist()])
    edges = {tuple(found["outlines"]["2"][i : i + 4]) for i in range(0, 16, 4)}
    assert edges == {(0, 1, 1, 1), (0, 2, 1, 2), (0, 1, 0, 2), (1, 1, 1, 2)}
    y, x = np.mgrid[:5, :5]
    discs = [(x - cx) ** 2 + (y - 1) ** 2 <= 1 for cx in np.linspace(1, 3, 5)]
    np.testing.assert_array_equal(np.reshape(found["mask"], (5, 5)) > 0, np.any(discs, axis=0))
    assert found["box"] == [0, 0, 4, 2] and found["back"] == pytest.approx([1.25, 3.5])
    assert found["same"] == [[2, 3, 4]] * 3 and found["colours"][:2] == [list(RECTUM), list(TUMOUR)]


@pytest.mark.parametrize("ratio", [1, 2])
def test_click_hits_its_voxel_at_any_zoom(browser, served, ratio):
    page = Page(browser, served, ratio)
    page.key("p")
    page.click(12, 20)
    page.settle()
    page.page.mouse.move(*page.at(40, 30))
    page.page.keyboard.down("Control")
    for _ in range(6):
        page.page.mouse.wheel(0, -100)
    page.page.keyboard.up("Control")
    page.wait(lambda: page.get("app.views[0].zoom") > 2)
    page.click(41, 33)
    page.settle()
    points = served.get("prompts/6")["points"]
    assert [[round(x), round(y), c] for x, y, c in points] == [[12, 20, 1], [41, 33, 1]]
    assert page.labels()[20, 12] == 1 and page.labels()[33, 41] == 1
    assert not page.problems
    page.context.close()


def test_mask_has_its_colours_and_hides(page):
    page.settle()
    grey = page.get(f"app.grey[{HU[25, 25, 6]} + 32768]")
    assert page.labels()[25, 25] == 1
    assert page.pixel(25, 25) == pytest.approx(blend(RECTUM, grey), abs=2)
    page.key("s")
    page.page.wait_for_timeout(60)
    assert page.pixel(25, 25) == [grey] * 3
    page.key("s", ".", ".")
    page.page.wait_for_timeout(60)
    assert page.pixel(25, 25) == pytest.approx(blend(RECTUM, grey, 0.65), abs=2)
    page.page.click("#classes input[type=checkbox] >> nth=0")
    page.page.wait_for_timeout(60)
    assert page.pixel(25, 25) == [grey] * 3


def test_points_box_and_undo_by_keyboard(page):
    automatic = page.labels()
    page.key("p", "w")  # the second class
    page.click(50, 45)
    page.settle()
    page.click(25, 25, button="right")
    page.settle()
    page.drag((5, 40), (15, 52))
    page.settle()
    prompts = page.served.get("prompts/6")
    assert [c for _, _, c in prompts["points"]] == [2, 0]
    assert np.rint(prompts["box"]).tolist() == [5, 40, 15, 52]
    assert page.labels()[45, 50] == 2 and page.labels()[25, 25] == 0
    page.page.wait_for_timeout(60)
    assert page.pixel(48, 45) == pytest.approx(blend(TUMOUR, 0), abs=3)
    for left in (2, 1, 0):
        page.key("Control+z")
        page.settle()
        assert len(page.served.get("prompts/6")["points"]) == min(left, 2)
    np.testing.assert_array_equal(page.labels(), automatic)
    page.key("Control+y")
    page.settle()
    assert page.labels()[45, 50] == 2 and "point (tumour)" in page.text("#messages")


def test_click_on_a_marker_removes_the_point(page):
    page.key("p")
    page.click(50, 45)
    page.settle()
    page.click(50, 45)
    page.settle()
    assert page.served.get("prompts/6")["points"] == []
    page.key("t")
    page.click(50, 45)  # the next click is negative
    page.settle()
    assert page.served.get("prompts/6")["points"][0][2] == 0


def test_click_that_replaces_another_is_said_once(page):
    page.key("p")
    page.click(50, 45)
    page.settle()
    # A click on the marker would remove it.
    page.page.evaluate("() => window.usamView.app.addPoint(50.25, 45.25, true)")
    page.settle()
    assert "replaces an earlier one on the same pixel" in page.text("#messages")
    page.page.evaluate("() => document.getElementById('messages').replaceChildren()")
    page.click(20, 12)
    page.settle()
    assert len(page.served.get("prompts/6")["points"]) == 3
    assert "replaces" not in page.text("#messages")


def test_second_click_before_the_new_state_keeps_the_first(page):
    page.key("p")
    page.page.evaluate("""() => {
      const {store} = window.usamView.app;
      const refresh = store.refresh.bind(store);
      const held = new Promise((resolve) => (window.release = resolve));
      store.refresh = () => held.then(refresh);
    }""")
    page.click(50, 45)
    page.wait(
        lambda: page.get("app.store.labelsOf('axial', 6)[45 * 70 + 50]") == 1
    )  # the reply has come
    page.click(20, 12)
    page.page.evaluate("() => window.release()")
    page.settle()
    points = page.served.get("prompts/6")["points"]
    assert [[round(x), round(y)] for x, y, _ in points] == [[50, 45], [20, 12]]


def test_tools_do_not_move_the_views(page):
    widths = []
    for key in ("v", "p", "b", "e"):
        page.key(key)
        page.page.wait_for_timeout(60)
        widths.append(page.get("document.getElementById('axial').getBoundingClientRect().width"))
    assert len(set(widths)) == 1 and page.get("document.body.scrollWidth") <= 1300


def test_clicks_do_nothing_in_look(page):
    before = page.revision()
    page.click(50, 45)
    page.settle()
    assert page.get("app.cross") == [6, 45, 50] and page.revision() == before
    page.click(30, 3, "coronal")
    page.wait(lambda: page.drawn() == "8")
    assert page.get("app.cross") == [8, 45, 30]


def test_brush_is_the_same_on_page_and_server(page):
    page.key("b", "w", "]")
    page.drag((45, 40), (60, 50))
    shown = page.get("[...app.store.labelsOf('axial', 6)]")
    page.settle()
    np.testing.assert_array_equal(np.reshape(shown, SHAPE[1:]), page.labels())
    assert (page.labels() == 2).sum() > 50
    page.key("e")
    page.drag((45, 40), (50, 43))
    page.settle()
    assert page.labels()[40, 45] == 0
    page.page.keyboard.down("Control")
    page.key("b")
    page.page.keyboard.up("Control")
    page.key("Escape", "b")
    page.page.keyboard.down("Control")
    page.drag((60, 50), (59, 49))
    page.page.keyboard.up("Control")
    page.settle()
    assert page.labels()[50, 60] == 0 and page.served.get("state")["undo"] == "eraser on slice 6"


def test_keys_move_through_slices_and_windows(page):
    page.key("ArrowUp")
    page.wait(lambda: page.drawn() == "7")
    page.key("PageDown")
    page.wait(lambda: page.drawn() == "0")
    page.key("Home")
    page.wait(lambda: page.drawn() == "11")
    page.key("4")
    assert page.get("app.window") == {"width": 2500, "level": 480}
    page.key("0")
    assert page.get("app.window") == {"width": 400, "level": 40}
    page.page.mouse.move(*page.at(30, 30))
    page.page.mouse.wheel(0, 100)
    page.wait(lambda: page.drawn() == "10")
    page.page.mouse.down(button="right")
    x, y = page.at(30, 30)
    page.page.mouse.move(x + 20, y + 10, steps=4)
    page.page.mouse.up(button="right")
    assert page.get("app.window.width") > 420 and page.get("app.window.level") < 40
    page.key("o", "x", "f", "[", "?")
    assert page.get("app.outlinesOnly") and page.page.is_visible("#help-page")
    page.key("Escape")
    assert not page.page.is_visible("#help-page")


def test_double_click_enlarges_one_view_and_back(page):
    width = page.get("app.views[1].canvas.clientWidth")
    page.page.mouse.dblclick(*page.at(30, 3, "coronal"))
    page.wait(lambda: page.get("app.views[1].canvas.clientWidth") > 2.5 * width)
    assert not page.page.is_visible("#axial")
    page.page.mouse.dblclick(*page.at(30, 3, "coronal"))
    page.wait(lambda: page.get("app.views[1].canvas.clientWidth") == width)


def test_pointer_shows_voxel_hu_and_class(page):
    page.page.mouse.move(*page.at(25, 24))
    page.wait(lambda: page.text("#pointer") != "")
    assert page.text("#pointer") == f"column 25, row 24, slice 6: {HU[25, 24, 6]} HU rectum"


def test_locked_slice_is_said_and_kept(page):
    page.key("l")
    page.settle()
    assert page.served.get("state")["locked"] == [6]
    page.key("b")
    page.drag((45, 40), (60, 50))
    page.settle()
    assert "Slice 6 is locked" in page.text("#messages")
    assert page.served.get("state")["edited"] == []


def test_propagation_shows_progress_and_stops(page):
    page.key("p")
    page.click(60, 50)
    page.settle()
    page.served.desk.worker.predictor.network.delay = 0.3
    page.key("k")
    page.wait(lambda: "propagation" in page.text("#busy"))
    page.key("Escape")
    page.wait(lambda: page.text("#busy") == "")
    page.settle()
    found = page.served.get("state")["propagated"]
    assert len(found) <= 3
    page.key("Control+z")
    page.settle()
    assert page.get("app.store.state.propagated") == []


def test_propagation_says_what_it_reached(page):
    page.key("k")
    page.wait(lambda: "Propagation from slice 6 ended: reached slices" in page.text("#messages"))
    page.page.fill("#first", "9")
    page.page.fill("#last", "2")
    page.page.keyboard.press("Tab")
    page.page.evaluate("() => document.activeElement.blur()")
    page.key("k")
    page.wait(lambda: "Propagation from 9 to 2 reaches no slice" in page.text("#messages"))


def test_negative_click_is_said_first(page):
    page.key("p", "t")
    page.wait(lambda: page.text("#hint").startswith("The next click is negative"))
    page.key("t")
    page.wait(lambda: page.text("#hint").startswith("rectum: "))
    assert "box (no class" in page.text("#hint")


def test_comparison_shows_errors(page):
    page.key("c")
    page.wait(lambda: page.page.is_visible("#scores") and "rectum" in page.text("#scores"))
    page.page.wait_for_timeout(100)
    only_mask = np.argwhere((page.labels() == 1) & (np.roll(LABELS, 3, 0)[..., 6].T == 0))[5]
    grey = page.get(f"app.grey[{HU[only_mask[1], only_mask[0], 6]} + 32768]")
    assert page.pixel(only_mask[1], only_mask[0]) == pytest.approx(blend(RECTUM, grey, 0.7), abs=3)
    assert "worst rectum" in page.text("#worst") and "nan" not in page.text("#scores")
    order = [x for x in page.get("app.worstSlices()") if x != 6]
    for worst in order[:2]:
        page.key("d")
        page.wait(lambda worst=worst: page.drawn() == str(worst))


def test_reload_and_second_tab_show_the_same(page):
    page.key("b")
    page.drag((45, 40), (60, 50))
    page.settle()
    first, expected = page.page, page.labels()
    page.page.reload()
    page.page.wait_for_selector("body[data-ready]")
    page.wait(lambda: page.drawn() == "6")
    assert "token" not in page.page.url
    np.testing.assert_array_equal(
        np.reshape(page.get("[...app.store.labelsOf('axial', 6)]"), SHAPE[1:]), expected
    )
    page.open_tab()
    page.key("Control+z")
    page.settle()
    page.page = first
    page.page.evaluate("() => window.usamView.app.store.refresh()")
    page.settle()
    assert page.get("app.store.state.edited") == []


def test_reload_keeps_slice_tool_and_window(page):
    page.key("p", "4", "ArrowUp")
    page.wait(lambda: page.drawn() == "7")
    page.page.reload()
    page.page.wait_for_selector("body[data-ready]")
    page.wait(lambda: page.drawn() == "7")
    assert page.get("app.tool") == "prompt" and page.get("app.window.width") == 2500


def test_save_says_where_and_what_failed(page, tmp_path):
    page.key("b")
    page.drag((45, 40), (60, 50))
    page.settle()
    assert page.text("#saved") == "edits kept, mask not saved"
    (tmp_path / ".tmp.mask.nii.gz").mkdir()
    page.key("Control+s")
    page.wait(lambda: "your edits are kept" in page.text("#messages"))
    page.problems.clear()  # Chromium logs the status 507
    (tmp_path / ".tmp.mask.nii.gz").rmdir()
    page.key("Control+s")
    page.wait(lambda: "Saved as" in page.text("#messages") and page.text("#saved") == "")
    assert (tmp_path / "mask.nii.gz").exists()


def test_click_right_after_a_jump_keeps_earlier_points(page):
    page.served.click(7, [[5, 5, 1], [9, 9, 2]])
    page.wait(lambda: page.get("app.store.refresh() && app.store.state.prompted.includes(7)"))
    page.key("p", "ArrowUp")
    page.click(50, 45)  # before the page has the slice's prompts
    page.settle()
    page.wait(lambda: len(page.served.get("prompts/7")["points"]) == 3)


def test_server_that_has_gone_is_said_once(browser, folder, tmp_path):
    with Served([Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")]) as served:
        page = Page(browser, served)
        served.server.should_exit = True
        served.thread.join()
        page.key("ArrowUp", "PageDown", "PageUp")
        page.page.wait_for_selector("#gone")
        page.page.wait_for_timeout(1500)
        assert page.page.locator("#messages div").count() == 1
        assert "is usam-view still running" in page.text("#messages")
        assert len(page.problems) < 40  # Chromium logs each refused request
        page.key("b")
        page.drag((10, 10), (20, 20))
        page.page.wait_for_selector("#messages :text('Not taken')")
        assert "no connection" in page.text("#saved") and page.page.is_visible("#gone")
        page.context.close()


def test_click_that_fails_leaves_no_marker(page):
    page.key("p")
    page.click(50, 45)
    page.settle()
    page.page.route("**/api/**", lambda route: route.abort())
    page.click(20, 12)
    page.wait(lambda: page.page.query_selector("#gone"))
    page.wait(lambda: len(page.get("app.store.promptsOf(6).points")) == 1)
    page.page.unroute("**/api/**")
    page.get("app.store.refresh()")
    page.wait(lambda: not page.page.query_selector("#gone"))
    page.problems.clear()  # Chromium logs the aborted request


def test_wrong_token_is_all_that_the_page_shows(browser, served):
    page = Page(browser, served)
    page.page.evaluate("() => sessionStorage.setItem('usam-view-token', 'old')")
    page.page.reload()
    page.page.wait_for_selector("body.only")
    assert "the token is wrong" in page.text("#only") and not page.page.is_visible("header")
    page.context.close()


def test_page_without_a_model_says_so(browser, folder, tmp_path):
    with Served([Paths(folder / "ct.nii.gz", tmp_path / "mask.nii.gz")]) as served:
        page = Page(browser, served)
        assert "start usam-view with --checkpoint" in page.text("#notes")
        page.key("p", "k")
        assert page.get("app.tool") == "look"
        page.key("b")
        page.drag((10, 10), (20, 20))
        page.settle()
        assert served.get("state")["edited"] == [6] and not page.problems
        page.context.close()


def test_names_cannot_inject_html(browser, folder, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    with Served([Paths(folder / "ct.nii.gz", tmp_path / "m.nii.gz")], names=[name]) as served:
        page = Page(browser, served)
        assert page.text("#name") == name and page.page.query_selector("#name img") is None
        page.context.close()


def test_work_list_opens_another_volume(browser, folder, tmp_path):
    paths = [Paths(folder / "ct.nii.gz", tmp_path / f"{x}.nii.gz") for x in "ab"]
    with Served(paths, Stub(size=70), names=["a", "b"]) as served:
        served.ready()
        page = Page(browser, served)
        make_case = served.desk.make_case
        served.desk.make_case = lambda number: time.sleep(0.5) or make_case(number)
        page.page.select_option("#cases", "1")
        page.page.evaluate("() => window.usamView.app.moveTo('axial', 8)")  # asks for pixels
        page.wait(lambda: page.page.title() == "b" and page.drawn() == "6")
        assert not page.problems
        page.context.close()


def test_work_list_ticks_what_is_saved_and_leaves_damaged(browser, folder, tmp_path):
    (tmp_path / "damaged.nii.gz").write_bytes(b"no volume")
    cts = {"a": folder / "ct.nii.gz", "b": tmp_path / "damaged.nii.gz"}
    paths = [Paths(ct, tmp_path / f"mask_{name}.nii.gz") for name, ct in cts.items()]
    with Served(paths, Stub(size=70), names=list(cts)) as served:
        served.ready()
        page = Page(browser, served)
        page.key("Control+s")
        page.wait(lambda: "✓ a" in page.text("#cases"))
        page.page.select_option("#cases", "1")
        page.wait(lambda: "damaged.nii.gz" in page.text("#messages") and page.drawn() == "6")
        assert page.page.input_value("#cases") == "0" and page.text("#name") == "a"
        page.context.close()


def test_other_tab_says_which_volume_was_opened(browser, folder, tmp_path):
    paths = [Paths(folder / "ct.nii.gz", tmp_path / f"{x}.nii.gz") for x in "ab"]
    with Served(paths, Stub(size=70), names=["a", "b"]) as served:
        served.ready()
        page = Page(browser, served)
        served.post("open", {"case": 1})
        page.page.evaluate("() => void window.usamView.app.store.refresh()")
        page.page.wait_for_selector("#messages :text('b was opened in another tab')")
        assert page.text("#name") == "b"
        page.context.close()
