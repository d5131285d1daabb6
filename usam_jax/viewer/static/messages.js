// Messages at the edge of the page.

import { GONE } from "./api.js";

const MESSAGE_MS = 6000;
const list = () => document.getElementById("messages");

function append(text, isError) {
  const element = document.createElement("div");
  element.textContent = text;
  element.className = isError ? "bad" : "";
  list().append(element);
  return element;
}

// Shows a text or an error for a while; a repeated one anew.
export function showMessage(content) {
  const isError = content instanceof Error;
  const text = isError ? content.message : content;
  if (text === GONE) return; // is shown for as long as it is true
  for (const shown of [...list().children]) if (shown.textContent === text) shown.remove();
  const element = append(text, isError);
  setTimeout(() => element.remove(), isError ? 2 * MESSAGE_MS : MESSAGE_MS);
}

// Shows for as long as it is true that the server does not answer.
export function showGone(isGone) {
  document.getElementById("gone")?.remove();
  if (isGone) append(GONE, true).id = "gone";
}

// Shows a message in place of the page, none of which would work.
export function showOnly(text) {
  document.getElementById("only").textContent = text;
  document.body.classList.add("only");
}
