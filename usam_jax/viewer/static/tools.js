// Mouse: what buttons, drags and the wheel do in a view.

import { clamp, crossFromPlane, indexOf, inside, zoomAt } from "./view.js";

const DRAG_PIXELS = 4;
const MARKER_PIXELS = 8;
const WHEEL_STEP = 50;

export class Mouse {
  constructor(view, app) {
    this.view = view;
    this.app = app;
    this.drag = null;
    this.wheel = 0;
    const { canvas } = view;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => this.app.setPointer(null));
    canvas.addEventListener("dblclick", () => this.takesClicks() || this.app.enlarge(view.axis));
    canvas.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("auxclick", (event) => event.preventDefault());
  }

  down(event) {
    const { app, view } = this;
    if (document.activeElement) document.activeElement.blur();
    const at = view.at(event);
    const kind = this.kindOf(event);
    event.preventDefault();
    view.canvas.setPointerCapture(event.pointerId);
    this.drag = { kind, start: [event.clientX, event.clientY], last: [event.clientX, event.clientY], at, moved: false };
    if (kind === "pick") app.pickClass(view.axis, at.plane);
    if (kind === "brush") app.startStroke(at.plane, event.ctrlKey || event.metaKey);
  }

  // Whether clicks in this view prompt or paint.
  takesClicks() {
    return this.view.axis === "axial" && this.app.tool !== "look";
  }

  // What a press begins.
  kindOf(event) {
    const { app, view } = this;
    const control = event.ctrlKey || event.metaKey;
    if (event.button === 1 || (event.button === 0 && app.spaceHeld)) return "pan";
    const prompts = app.tool === "prompt" && view.axis === "axial";
    if (event.button === 2) return prompts ? "negative" : "window";
    if (app.isBrush() && view.axis === "axial") return "brush";
    if (control) return "pick";
    return prompts ? "positive" : "look";
  }

  move(event) {
    const { app, view, drag } = this;
    const at = view.at(event);
    app.setPointer({ axis: view.axis, plane: at.plane });
    if (!drag) {
      if (event.shiftKey) this.setCross(at.plane);
      return;
    }
    const dx = event.clientX - drag.last[0];
    const dy = event.clientY - drag.last[1];
    const far = Math.hypot(event.clientX - drag.start[0], event.clientY - drag.start[1]);
    drag.moved ||= far >= DRAG_PIXELS;
    if (drag.kind === "brush") {
      const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of events.length ? events : [event]) app.continueStroke(view.at(one).plane);
    } else if (drag.moved) {
      if (drag.kind === "pan") this.pan(dx, dy);
      if (drag.kind === "window" || drag.kind === "look" || drag.kind === "negative") app.dragWindow(dx, dy);
      if (drag.kind === "positive") app.dragBox(this.boxTo(at.plane));
    } else {
      return; // the first pixels of a drag are not lost
    }
    drag.last = [event.clientX, event.clientY];
  }

  up(event) {
    const { app, view, drag } = this;
    this.drag = null;
    if (!drag) return;
    const [x, y] = drag.at.plane;
    if (drag.kind === "brush") app.endStroke();
    if (drag.kind === "positive" && drag.moved) app.dropBox(this.box(drag, view.at(event).plane));
    if (drag.moved) return;
    if (drag.kind === "look") this.setCross(drag.at.plane);
    if (drag.kind !== "positive" && drag.kind !== "negative") return;
    const marker = this.markerAt(drag.at.canvas);
    if (marker >= 0) app.removePoint(marker);
    else if (inside(view.grid, x, y)) app.addPoint(x, y, drag.kind === "negative");
  }

  cancel() {
    if (this.drag?.kind === "brush") this.app.cancelStroke();
    if (this.drag?.kind === "positive") this.app.dragBox(null);
    this.drag = null;
  }

  setCross([x, y]) {
    const { app, view } = this;
    if (inside(view.grid, x, y)) {
      app.setCross(crossFromPlane(view.axis, x, y, app.cross, app.store.state.shape));
    }
  }

  boxTo(plane) {
    return this.box(this.drag, plane);
  }

  // The box of a drag, inside the plane.
  box(drag, [x1, y1]) {
    const { columns, rows } = this.view.grid;
    const [x0, y0] = drag.at.plane;
    const fit = (x, end) => clamp(x, 0, end - 1);
    return [
      fit(Math.min(x0, x1), columns),
      fit(Math.min(y0, y1), rows),
      fit(Math.max(x0, x1), columns),
      fit(Math.max(y0, y1), rows),
    ];
  }

  // The number of the point whose marker lies under a point of the canvas, or -1.
  markerAt([x, y]) {
    const { app, view } = this;
    const place = view.place();
    const limit = MARKER_PIXELS * view.ratio;
    return app.store.promptsOf(app.cross[0]).points.findIndex(
      ([px, py]) =>
        Math.hypot(place.left + (px + 0.5) * place.sx - x, place.top + (py + 0.5) * place.sy - y) < limit,
    );
  }

  pan(dx, dy) {
    const { view, app } = this;
    const scale = view.ratio / view.place().perMm;
    view.pan = [view.pan[0] + dx * scale, view.pan[1] + dy * scale];
    app.draw();
  }

  scroll(event) {
    event.preventDefault();
    const { app, view } = this;
    if (event.ctrlKey || event.metaKey) {
      const zoom = clamp(view.zoom * Math.exp(-Math.sign(event.deltaY) * 0.15), 0.5, 40);
      view.pan = zoomAt(view.grid, view.canvas, view.zoom, view.pan, ...view.at(event).canvas, zoom);
      view.zoom = zoom;
      app.draw();
      return;
    }
    // A notch of a mouse wheel is one slice; a touch pad sends many small steps.
    const isNotch = event.deltaMode !== 0 || Math.abs(event.deltaY) >= WHEEL_STEP;
    this.wheel = isNotch ? Math.sign(event.deltaY) * WHEEL_STEP : this.wheel + event.deltaY;
    const steps = Math.trunc(this.wheel / WHEEL_STEP);
    this.wheel -= steps * WHEEL_STEP;
    if (steps) app.moveTo(view.axis, indexOf(view.axis, app.cross) - steps);
  }
}
