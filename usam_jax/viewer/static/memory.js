// What a tab remembers over a reload.

const NOTICE = "usam-view-notice";
const LOOK = "usam-view-look";

// Keeps a message for the page that is loaded next.
export function keepNotice(text) {
  sessionStorage.setItem(NOTICE, text);
}

export function takeNotice() {
  const text = sessionStorage.getItem(NOTICE);
  sessionStorage.removeItem(NOTICE);
  return text;
}

export function keepLook(app) {
  const { cross, tool, window, store } = app;
  sessionStorage.setItem(LOOK, JSON.stringify({ name: store.state.name, cross, tool, window }));
}

// Restores window and tool, and for the same volume the crosshair.
export function restoreLook(app) {
  const found = sessionStorage.getItem(LOOK);
  if (!found) return;
  const { name, cross, tool, window } = JSON.parse(found);
  const { state } = app.store;
  app.setWindow(window.width, window.level);
  if (tool !== "prompt" || state.promptable) app.setTool(tool);
  if (name === state.name && cross.every((x, i) => x < state.shape[i])) app.setCross(cross);
}
