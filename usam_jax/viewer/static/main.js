// Starts the page.

import { actions } from "./actions.js";
import { Api, takeToken } from "./api.js";
import { App } from "./app.js";
import { fillHelp, listen } from "./keys.js";
import { keepLook, restoreLook, takeNotice } from "./memory.js";
import { showGone, showMessage, showOnly } from "./messages.js";
import { Panel } from "./panel.js";
import { View } from "./screen.js";
import { Store } from "./store.js";
import { Strip } from "./strip.js";
import { Mouse } from "./tools.js";
import { AXES, toCanvas } from "./view.js";

const BUSY_MS = 500;
const IDLE_MS = 5000;

Object.assign(App.prototype, actions);

async function poll(app) {
  const { store } = app;
  for (let idle = 0; ; idle += BUSY_MS) {
    await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
    if (!store.state.busy && idle < IDLE_MS) continue; // what is started meanwhile is shown soon
    idle = 0;
    try {
      await store.refresh();
      if (app.comparing && app.comparison && app.comparison.revision !== store.state.revision) {
        await app.loadComparison();
      }
    } catch (error) {
      showMessage(error);
    }
  }
}

async function start() {
  const store = new Store(new Api(takeToken()));
  const app = new App(store);
  store.api.onGone = () => {
    showGone(store.api.isGone);
    app.draw();
  };
  store.api.onRefused = (error) => showOnly(error.message);
  app.say = showMessage;
  store.onError = showMessage;
  store.onReplaced = () =>
    showMessage("This click replaces an earlier one on the same pixel of the model's input.");
  await store.refresh();
  app.views = AXES.map((axis) => new View(axis, app));
  for (const view of app.views) view.mouse = new Mouse(view, app);
  app.start();
  const panel = new Panel(app);
  const strip = new Strip(app);
  app.drawPanel = () => {
    panel.draw();
    strip.draw();
    const { dataset } = document.body;
    dataset.revision = store.state.revision;
    dataset.tool = app.tool;
    dataset.slice = app.cross[0];
    dataset.pending = store.api.pending;
    dataset.model = store.state.model;
  };
  panel.fill();
  app.listCases = () => panel.fillCases();
  restoreLook(app);
  window.addEventListener("pagehide", () => keepLook(app));
  const notice = takeNotice();
  if (notice) showMessage(notice);
  fillHelp(document.getElementById("help-page"));
  listen(app);
  let wasPromptable = store.state.promptable;
  store.onChange = () => {
    if (store.state.promptable && !wasPromptable) app.moved();
    wasPromptable = store.state.promptable;
    app.reportPropagation();
    app.draw();
  };
  app.draw();
  document.body.dataset.ready = "true";
  // For tests: where a point of a plane lies in the window.
  window.usamView = {
    app,
    clientOf(axis, x, y) {
      const view = app.views[AXES.indexOf(axis)];
      const box = view.canvas.getBoundingClientRect();
      const [cx, cy] = toCanvas(view.place(), x, y);
      return [box.left + (cx * box.width) / view.canvas.width, box.top + (cy * box.height) / view.canvas.height];
    },
  };
  poll(app);
}

start().catch((error) => showOnly(error.message));
