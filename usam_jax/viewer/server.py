"""The HTTP API of the viewer, and its page."""

import asyncio
import gzip
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from usam_jax.utils.errors import UserError
from usam_jax.viewer import checks, planes
from usam_jax.viewer.case import FORMATS, Case
from usam_jax.viewer.checks import BadRequest
from usam_jax.viewer.desk import Desk
from usam_jax.viewer.guard import App, Guard, TooLarge
from usam_jax.viewer.session import Refused
from usam_jax.viewer.slice_state import NO_PROMPTS
from usam_jax.viewer.worker import Answer, NotReady, Superseded

STATIC = pathlib.Path(__file__).with_name("static")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
ACTIONS = ("clear_prompts", "clear_edits", "lock", "unlock")
Handler = Callable[[Request], Awaitable[Response]]


def gzipped(plane: np.ndarray, **headers: str) -> Response:
    """A response of uint8 pixels in row-major order."""
    body = gzip.compress(np.ascontiguousarray(plane).tobytes(), 1, mtime=0)
    return Response(body, headers={"content-encoding": "gzip"} | headers, media_type="image/x-raw")


class Api:
    """The handlers of the API for the volume that is open on a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.opening = asyncio.Lock()

    def case_for(self, request: Request) -> Case:
        """Return the open case. Raises HTTPException if the page shows another one."""
        case = self.desk.case
        shown = request.headers.get("x-case")
        if case is None or (shown is not None and shown != str(self.desk.number)):
            raise HTTPException(409, "another volume was opened; this page must be loaded again")
        return case

    def describe_state(self, case: Case, since: int) -> dict[str, Any]:
        """Return what the page shows besides pixels."""
        desk, worker, session = self.desk, self.desk.worker, case.session
        busy = worker.busy()  # outside the lock: the worker takes its own lock before the session's
        with session.lock:
            slices = sorted(session.slices.items())
            history = session.history
            changed = np.flatnonzero(session.changed_at > since)
            return {
                "revision": session.revision,
                "case": desk.number,
                "num_cases": len(desk.paths),
                "shape": list(session.shape),
                "spacing_mm": list(case.geometry.spacing_mm),
                "name": desk.names[desk.number],
                "classes": list(case.classes),
                "points_carry_class": bool(case.model and case.model.points_carry_class),
                "promptable": worker.promptable,
                "trained_without_prompts": worker.trained_without_prompts,
                "model_window": list(case.model.window) if case.model else None,
                "warnings": case.warnings,
                "formats": case.formats(),
                "model": worker.model,
                "problem": worker.problem,
                "autosave_problem": case.autosave.journal.problem,
                "busy": busy,
                "changed": changed.tolist(),
                "filled": [np.flatnonzero(x).tolist() for x in session.counts[changed]],
                "prompted": [i for i, x in slices if x.prompts != NO_PROMPTS],
                "propagated": [i for i, x in slices if x.propagated is not None],
                "edited": [i for i, x in slices if x.edits is not None],
                "locked": [i for i, x in slices if x.locked],
                "undo": history.done[-1].what if history.done else None,
                "redo": history.undone[-1].what if history.undone else None,
                "saved_revision": session.saved_revision,
                "volume_ml": (session.counts[:, 1:].sum(0) * session.ml_per_voxel).tolist(),
                "base": case.base,
                "has_reference": case.reference is not None,
            }

    def reply(self, request: Request, case: Case, **more: Any) -> Response:
        """A response of the state after a change."""
        since = request.headers.get("x-revision", "-1")
        known = int(since) if since.lstrip("-").isdigit() else -1
        return JSONResponse(self.describe_state(case, known) | more)

    async def state(self, request: Request) -> Response:
        """GET /api/state?since=REV."""
        since = request.query_params.get("since", "-1")
        known = -1 if since == "-1" else checks.index("since", since, 2**26)
        if self.desk.case is None:
            raise HTTPException(503, "a volume is being opened")
        return JSONResponse(self.describe_state(self.desk.case, known))

    async def pixels(self, request: Request) -> Response:
        """GET /api/image, /api/labels or /api/reference, each /AXIS/INDEX."""
        case, kind = self.case_for(request), request.path_params["kind"]
        axis = checks.one_of("axis", request.path_params["axis"], planes.AXES)
        end = planes.count(case.session.shape, axis)
        number = checks.index("index", request.path_params["index"], end)
        if kind == "image":
            values = planes.display_hu(planes.plane(case.source.hu, axis, number))
            return Response(values.tobytes(), media_type="image/x-raw")
        if kind == "labels":
            with case.session.lock:
                return gzipped(planes.plane(case.session.labels, axis, number))
        if kind != "reference" or case.reference is None:
            raise HTTPException(404, "there is no such image")
        return gzipped(planes.plane(case.reference, axis, number))

    async def get_prompts(self, request: Request) -> Response:
        """GET /api/prompts/SLICE."""
        case = self.case_for(request)
        number = checks.index("slice", request.path_params["number"], case.session.shape[0])
        prompts = case.session.slice_state(number).prompts
        return JSONResponse({"points": prompts.points, "box": prompts.box})

    async def set_prompts(self, request: Request) -> Response:
        """POST /api/prompts: the slice's new labels."""
        case, session = self.case_for(request), self.case_for(request).session
        keys = {"slice", "points", "box", "sequence"}
        content = checks.read_object(await request.body(), keys)
        number = checks.integer("slice", content["slice"], session.shape[0])
        sequence = checks.integer("sequence", content["sequence"], 2**53)
        prompts = checks.prompts(
            content["points"], content["box"], session.plane_shape, len(case.classes)
        )
        answer = Answer(0.0, False)
        if prompts == NO_PROMPTS:
            session.set_prompts(number, prompts, None)
        else:
            session.require_unlocked(number)
            answer = await asyncio.wrap_future(self.desk.worker.predict(number, prompts))
        headers = {
            "x-revision": str(session.revision),
            "x-sequence": str(sequence),
            "x-decode-ms": f"{answer.decode_ms:.1f}",
            "x-replaces": str(int(answer.replaces)),
        }
        return gzipped(session.labels_of(number), **headers)

    async def encode(self, request: Request) -> Response:
        """POST /api/encode: encode the displayed slice ahead of a click."""
        case = self.case_for(request)
        content = checks.read_object(await request.body(), {"slice"})
        self.desk.worker.show(checks.integer("slice", content["slice"], case.session.shape[0]))
        return JSONResponse({}, 202)

    async def paint(self, request: Request) -> Response:
        """POST /api/paint: one stroke of the brush or eraser."""
        case = self.case_for(request)
        content, mask = checks.stroke(await request.body())
        number = checks.integer("slice", content["slice"], case.session.shape[0])
        label = checks.integer("label", content["label"], len(case.classes))
        case.session.paint(number, content["box"], mask, label)
        return self.reply(request, case)

    async def step(self, request: Request) -> Response:
        """POST /api/undo or /api/redo."""
        case, name = self.case_for(request), request.url.path.rpartition("/")[2]
        self.desk.worker.stop()
        action = case.session.undo() if name == "undo" else case.session.redo()
        if action is None:
            raise HTTPException(409, f"there is nothing to {name}")
        return self.reply(request, case, slice=action.number, what=action.what)

    async def propagate(self, request: Request) -> Response:
        """POST /api/propagate."""
        case = self.case_for(request)
        content = checks.read_object(await request.body(), {"slice", "first", "last"})
        n = case.session.shape[0]
        number, first, last = (checks.integer(x, content[x], n) for x in ("slice", "first", "last"))
        if not first <= number <= last:
            raise BadRequest(f"slice: got {number}, expected one from {first} to {last}")
        self.desk.worker.propagate(number, first, last)
        return JSONResponse({}, 202)

    async def stop(self, request: Request) -> Response:
        """POST /api/stop: stop the propagation; what it has done stays."""
        self.case_for(request)
        self.desk.worker.stop()
        return JSONResponse({}, 202)

    async def change_slice(self, request: Request) -> Response:
        """POST /api/slice: clear or lock a slice."""
        case = self.case_for(request)
        content = checks.read_object(await request.body(), {"slice", "action"})
        number = checks.integer("slice", content["slice"], case.session.shape[0])
        action = checks.one_of("action", content["action"], ACTIONS)
        if action.startswith("clear_"):
            case.session.clear(number, action.removeprefix("clear_"))
        else:
            case.session.set_locked(number, action == "lock")
        return self.reply(request, case)

    async def comparison(self, request: Request) -> Response:
        """GET /api/comparison."""
        return JSONResponse(await run_in_threadpool(self.case_for(request).compare))

    async def save(self, request: Request) -> Response:
        """POST /api/save. The path comes from the command line, never from the page."""
        case = self.case_for(request)
        content = checks.read_object(await request.body(), {"format"})
        format_name = checks.one_of("format", content["format"], FORMATS)
        return JSONResponse(await run_in_threadpool(case.save, format_name))

    async def cases(self, _request: Request) -> Response:
        """GET /api/cases: the work list."""
        return JSONResponse({"cases": self.desk.describe()})

    async def open(self, request: Request) -> Response:
        """POST /api/open: open another volume of the work list."""
        self.case_for(request)
        content = checks.read_object(await request.body(), {"case"})
        number = checks.integer("case", content["case"], len(self.desk.paths))
        async with self.opening:
            await run_in_threadpool(self.desk.open, number)
        return JSONResponse({"case": number})


async def static(request: Request) -> Response:
    """GET / and /static/NAME, of a fixed table of names."""
    name = request.path_params.get("name", "index.html")
    path = STATIC_FILES.get(name)
    if path is None:
        raise HTTPException(404, "there is no such file")
    return Response(path.read_bytes(), media_type=TYPES[path.suffix])


STATIC_FILES = {x.name: x for x in STATIC.glob("*.*") if x.suffix in TYPES}


async def refuse(_request: Request, error: Exception) -> Response:
    """Return an error as JSON, with the status of its type."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    if isinstance(error, OSError):
        return JSONResponse({"error": f"cannot be written: {error}"}, status)
    return JSONResponse({"error": str(error)}, status)


STATUS: dict[type[Exception], int] = {
    BadRequest: 400,
    TooLarge: 413,
    NotReady: 503,
    Superseded: 409,
    Refused: 409,
    UserError: 422,
    OSError: 507,
}


def make_app(desk: Desk, token: str) -> App:
    """Return the application, guarded by a token."""
    api = Api(desk)
    get: dict[str, Handler] = {
        "/": static,
        "/static/{name}": static,
        "/api/state": api.state,
        "/api/cases": api.cases,
        "/api/comparison": api.comparison,
        "/api/prompts/{number}": api.get_prompts,
        "/api/{kind}/{axis}/{index}": api.pixels,
    }
    post: dict[str, Handler] = {
        "prompts": api.set_prompts,
        "encode": api.encode,
        "paint": api.paint,
        "undo": api.step,
        "redo": api.step,
        "propagate": api.propagate,
        "stop": api.stop,
        "slice": api.change_slice,
        "save": api.save,
        "open": api.open,
    }
    routes = [Route(path, handler, methods=["GET"]) for path, handler in get.items()]
    routes += [Route(f"/api/{x}", handler, methods=["POST"]) for x, handler in post.items()]
    handlers = dict.fromkeys((HTTPException, *STATUS), refuse)
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(cast(App, app), token)
