// What the page knows: the server's state, and planes of pixels, fetched when they are drawn.

import { keepNotice } from "./memory.js";
import { planeGrid } from "./view.js";

const KEPT_IMAGES = 400;
const RETRY_MS = 2000; // after a request failed
const NOTHING = { points: [], box: null };

const parse = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

export class Store {
  constructor(api) {
    this.api = api;
    this.state = null;
    this.images = new Map(); // "axis/index" -> Int16Array, the most recently used last
    this.labels = new Map(); // "axis/index" -> {data, stale, ticket}
    this.references = new Map();
    this.filled = new Map(); // slice -> classes on it
    this.prompts = new Map(); // slice -> {points, box}
    this.oldPrompts = new Set(); // slices whose prompts are to be fetched again
    this.quietUntil = 0; // no fetches before this time
    this.loading = new Set();
    this.sequence = 0;
    this.newest = new Map(); // slice -> sequence of its newest prompts
    this.changedAt = new Map(); // slice -> revision in which it changed last
    this.taken = new Map(); // slice -> the prompts that the server had before newer ones were sent
    this.onChange = () => {}; // something to draw has arrived
    this.onError = () => {};
    this.onReplaced = () => {}; // a new click lies on the same pixel of the model's input as an earlier one
  }

  grid(axis) {
    return planeGrid(axis, this.state.shape, this.state.spacing_mm);
  }

  // Takes a state of the server, which lists the slices that changed since the last one.
  merge(state) {
    if (this.api.caseNumber !== null && state.case !== this.api.caseNumber) {
      keepNotice(`${state.name} was opened in another tab, and this tab follows.`);
      location.reload();
      return;
    }
    this.api.caseNumber = state.case;
    if (state.revision < this.api.revision) return;
    state.changed.forEach((number, i) => {
      this.filled.set(number, state.filled[i]);
      this.changedAt.set(number, state.revision);
      this.expire(`axial/${number}`);
      if (!this.isWaiting(number)) this.oldPrompts.add(number);
    });
    if (state.changed.length) {
      for (const key of this.labels.keys()) if (!key.startsWith("axial")) this.expire(key);
    }
    this.api.revision = state.revision;
    this.state = state;
    this.onChange();
  }

  async refresh() {
    this.merge(await this.api.getJson(`state?since=${this.api.revision}`));
  }

  expire(key) {
    const entry = this.labels.get(key);
    if (entry) entry.stale = true;
  }

  // The HU of a plane, or null while they are fetched.
  image(axis, index) {
    const key = `${axis}/${index}`;
    const found = this.images.get(key);
    if (found) {
      this.images.delete(key);
      this.images.set(key, found);
      return found;
    }
    this.fetchOnce(`image/${key}`, (bytes) => {
      this.images.set(key, new Int16Array(bytes));
      if (this.images.size > KEPT_IMAGES) this.images.delete(this.images.keys().next().value);
    });
    return null;
  }

  // The labels of a plane: the last ones known while newer ones are fetched, or null.
  labelsOf(axis, index) {
    const key = `${axis}/${index}`;
    let entry = this.labels.get(key);
    if (!entry) this.labels.set(key, (entry = { data: null, stale: true, ticket: 0 }));
    const ticket = entry.ticket + 1;
    const accept = (bytes) => {
      if (entry.ticket === ticket) entry.data = new Uint8Array(bytes);
    };
    if (entry.stale && this.fetchOnce(`labels/${key}`, accept, () => (entry.stale = true))) {
      entry.stale = false;
      entry.ticket = ticket;
    }
    return entry.data;
  }

  setLabels(number, data) {
    const key = `axial/${number}`;
    const ticket = (this.labels.get(key)?.ticket ?? 0) + 1;
    this.labels.set(key, { data, stale: false, ticket });
    this.onChange();
  }

  referenceOf(axis, index) {
    const key = `${axis}/${index}`;
    if (this.references.has(key)) return this.references.get(key);
    this.fetchOnce(`reference/${key}`, (bytes) => this.references.set(key, new Uint8Array(bytes)));
    return null;
  }

  // Starts to fetch pixels, unless it is under way or the server has just failed.
  fetchOnce(path, accept, reject = () => {}) {
    if (this.loading.has(path) || performance.now() < this.quietUntil) return false;
    this.loading.add(path);
    this.api
      .getBytes(path)
      .then(accept)
      .catch((error) => {
        reject();
        this.quietUntil = performance.now() + RETRY_MS;
        setTimeout(() => this.onChange(), RETRY_MS + 100);
        this.onError(error);
      })
      .finally(() => {
        this.loading.delete(path);
        this.onChange();
      });
    return true;
  }

  // The prompts of a slice, the last known ones while they are fetched.
  promptsOf(number) {
    if (this.isWaiting(number)) return this.prompts.get(number);
    if (!this.state.prompted.includes(number)) return NOTHING;
    const found = this.prompts.get(number);
    if (!found || this.oldPrompts.has(number)) {
      const accept = (bytes) => {
        this.oldPrompts.delete(number);
        if (!this.isWaiting(number)) this.prompts.set(number, parse(bytes));
      };
      this.fetchOnce(`prompts/${number}`, accept);
    }
    return found ?? NOTHING;
  }

  // The prompts of a slice as the server has them, to which new ones can be added.
  async loadPrompts(number) {
    if (this.isWaiting(number)) return this.prompts.get(number);
    if (!this.state.prompted.includes(number)) return NOTHING;
    if (!this.prompts.has(number) || this.oldPrompts.has(number)) {
      this.prompts.set(number, await this.api.getJson(`prompts/${number}`));
      this.oldPrompts.delete(number);
    }
    return this.prompts.get(number);
  }

  isWaiting(number) {
    return this.newest.has(number);
  }

  // Shows new prompts at once, sends them, and shows the labels of the newest reply.
  async setPrompts(number, prompts) {
    const sequence = (this.sequence += 1);
    const before = this.promptsOf(number);
    const isNew = prompts.points.length > before.points.length;
    if (!this.isWaiting(number)) this.taken.set(number, before);
    this.newest.set(number, sequence);
    this.prompts.set(number, prompts);
    this.onChange();
    try {
      const reply = await this.api.postPrompts({ slice: number, ...prompts, sequence });
      if (this.newest.get(number) === reply.sequence) {
        this.setLabels(number, reply.labels);
        if (isNew && reply.replaces) this.onReplaced();
      }
      await this.refresh();
      if (this.state.revision !== reply.revision) this.oldPrompts.add(number); // maybe another tab's
    } catch (error) {
      if (this.newest.get(number) !== sequence) return; // newer prompts have replaced these
      this.prompts.set(number, this.taken.get(number));
      this.oldPrompts.add(number);
      this.onError(error);
      if (!this.api.isGone) await this.refresh();
    } finally {
      if (this.newest.get(number) === sequence) this.newest.delete(number);
    }
  }

  // Sends a change whose reply is the new state, and returns the reply, or null if it failed.
  async change(path, content) {
    try {
      const reply = await this.api.post(path, content);
      this.merge(reply);
      return reply;
    } catch (error) {
      this.onError(error);
      return null;
    }
  }
}
