// Requests to the server. The token comes in the address's fragment, which browsers never send.

const KEY = "usam-view-token";

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
  }

  async request(method, path, body) {
    const headers = { "X-Token": this.token, "X-Revision": String(this.revision) };
    if (this.caseNumber !== null) headers["X-Case"] = String(this.caseNumber);
    this.pending += 1;
    try {
      const response = await fetch(`/api/${path}`, { method, headers, body });
      if (response.ok) return response;
      const text = await response.text();
      throw new ApiError(response.status, errorOf(text) ?? `${response.status}`);
    } catch (error) {
      if (error instanceof ApiError) throw error;
      throw new ApiError(0, "the server does not answer; is usam-view still running?");
    } finally {
      this.pending -= 1;
    }
  }

  async getJson(path) {
    return (await this.request("GET", path)).json();
  }

  async getBytes(path) {
    return (await this.request("GET", path)).arrayBuffer();
  }

  async post(path, content) {
    return (await this.request("POST", path, JSON.stringify(content))).json();
  }

  // Sends prompts; returns the slice's labels and the sequence number of the request.
  async postPrompts(content) {
    const response = await this.request("POST", "prompts", JSON.stringify(content));
    return {
      labels: new Uint8Array(await response.arrayBuffer()),
      sequence: Number(response.headers.get("X-Sequence")),
      decodeMs: Number(response.headers.get("X-Decode-Ms")),
    };
  }

  async postStroke(content, mask) {
    const head = new TextEncoder().encode(JSON.stringify(content));
    const body = new Uint8Array(4 + head.length + mask.length);
    new DataView(body.buffer).setUint32(0, head.length, true);
    body.set(head, 4);
    body.set(mask, 4 + head.length);
    return (await this.request("POST", "paint", body)).json();
  }
}

function errorOf(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return null;
  }
}
