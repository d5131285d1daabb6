// Requests to the server. The token comes in the address's fragment, which browsers never send.

const KEY = "usam-view-token";
export const GONE =
  "The server does not answer; is usam-view still running? Start the same command again and open the " +
  "address that it prints: all that the page showed before is kept.";

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Takes the token from the address bar into the tab's storage, and returns it.
export function takeToken() {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem(KEY, found[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) ?? "";
}

export class Api {
  constructor(token) {
    this.token = token;
    this.caseNumber = null; // the volume that this page shows
    this.revision = -1;
    this.pending = 0;
    this.opening = null; // settles if a volume cannot be opened; otherwise the page is loaded again
    this.onIdle = null;
    this.isGone = false; // the server did not answer the last request
    this.onGone = () => {}; // `isGone` has changed
    this.onRefused = () => {}; // the server does not know the token
  }

  // Sends a request and returns what `read` makes of its response.
  async request(method, path, body, read = (response) => response.json()) {
    while (this.opening) await this.opening; // the server has no volume meanwhile
    return this.send(method, path, body, read);
  }

  async send(method, path, body, read) {
    const headers = { "X-Token": this.token, "X-Revision": String(this.revision) };
    if (this.caseNumber !== null) headers["X-Case"] = String(this.caseNumber);
    this.pending += 1;
    try {
      const response = await fetch(`/api/${path}`, { method, headers, body });
      if (response.ok) {
        const content = await read(response);
        this.setGone(false);
        return content;
      }
      throw await this.refusal(response);
    } catch (error) {
      if (error instanceof ApiError) throw error;
      this.setGone(true);
      throw new ApiError(0, GONE);
    } finally {
      this.pending -= 1;
      if (!this.pending) this.onIdle?.();
    }
  }

  // The error of a response.
  async refusal(response) {
    const text = await response.text();
    this.setGone(false);
    const error = new ApiError(response.status, errorOf(text) ?? `${response.status}`);
    if (response.status === 401) this.onRefused(error);
    return error;
  }

  setGone(isGone) {
    if (this.isGone === isGone) return;
    this.isGone = isGone;
    this.onGone();
  }

  async getJson(path) {
    return this.request("GET", path);
  }

  async getBytes(path) {
    return this.request("GET", path, undefined, (response) => response.arrayBuffer());
  }

  async post(path, content) {
    return this.request("POST", path, JSON.stringify(content));
  }

  // Opens another volume, once all requests about this one are answered; new ones wait.
  async open(number) {
    const opened = this.whenIdle().then(() =>
      this.send("POST", "open", JSON.stringify({ case: number }), (response) => response.json()),
    );
    this.opening = opened.then(() => new Promise(() => {}), () => (this.opening = null));
    return opened;
  }

  async whenIdle() {
    if (this.pending) await new Promise((resolve) => (this.onIdle = resolve));
  }

  // Sends prompts; returns the slice's labels, the number of the request and the new revision.
  async postPrompts(content) {
    return this.request("POST", "prompts", JSON.stringify(content), async (response) => ({
      labels: new Uint8Array(await response.arrayBuffer()),
      sequence: Number(response.headers.get("X-Sequence")),
      revision: Number(response.headers.get("X-Revision")),
      replaces: response.headers.get("X-Replaces") === "1",
    }));
  }

  async postStroke(content, mask) {
    const head = new TextEncoder().encode(JSON.stringify(content));
    const body = new Uint8Array(4 + head.length + mask.length);
    new DataView(body.buffer).setUint32(0, head.length, true);
    body.set(head, 4);
    body.set(mask, 4 + head.length);
    return this.request("POST", "paint", body);
  }
}

function errorOf(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return null;
  }
}
