// Prompts, undo, propagation, locks, comparison, saving. Mixed into App.

import { keepNotice } from "./memory.js";

export const actions = {
  // Prompts.

  async addPoint(x, y, isNegative) {
    const c = isNegative ? 0 : this.nextClass();
    this.nextNegative = false;
    await this.changePrompts(({ points, box }) => ({ points: [...points, [x, y, c]], box }));
  },

  async removePoint(index) {
    await this.changePrompts(({ points, box }) => ({ points: points.filter((_, i) => i !== index), box }));
  },

  dragBox(box) {
    this.draggedBox = box;
    this.draw();
  },

  async dropBox(box) {
    this.draggedBox = null;
    await this.changePrompts(({ points }) => ({ points, box }));
  },

  // Replaces the prompts of the displayed slice by what `change` makes of them.
  async changePrompts(change) {
    const number = this.cross[0];
    if (!this.canChange(number)) return;
    try {
      const before = await this.store.loadPrompts(number);
      await this.store.setPrompts(number, change(before));
    } catch (error) {
      this.say(error);
    }
    this.draw();
  },

  // The whole volume.

  async step(name) {
    if (!this.store.state[name]) {
      this.say(`There is nothing to ${name}.`);
      return;
    }
    const reply = await this.store.change(name, {});
    if (!reply) return;
    this.moveTo("axial", reply.slice);
    this.say(`${name === "undo" ? "Undone" : "Done again"}: ${reply.what}`);
  },

  isLocked(number) {
    return this.store.state.locked.includes(number);
  },

  async changeSlice(action) {
    await this.store.change("slice", { slice: this.cross[0], action });
  },

  async toggleLock() {
    await this.changeSlice(this.isLocked(this.cross[0]) ? "unlock" : "lock");
  },

  async propagate() {
    if (!this.store.state.promptable) {
      this.say(`Propagation is off: ${this.whyNoClicks()}`);
      return;
    }
    const slice = this.cross[0];
    const [from, to] = this.range;
    const first = Math.min(from, slice);
    const last = Math.max(to, slice);
    if (from > to || first === last) {
      this.say(`Propagation from ${from} to ${to} reaches no slice besides ${slice}; set the two fields.`);
      return;
    }
    const { revision } = this.store.state;
    try {
      await this.store.api.post("propagate", { slice, first, last });
      await this.store.refresh();
      this.propagation = { slice, revision, how: "ended" };
      this.reportPropagation();
    } catch (error) {
      this.say(error);
    }
  },

  // Says, once a propagation is over, what it has reached.
  reportPropagation() {
    const { propagation, store } = this;
    if (!propagation || store.state.busy?.what === "propagation") return;
    this.propagation = null;
    const found = store.state.propagated.filter((k) => store.changedAt.get(k) > propagation.revision);
    const reached = found.length ? `reached slices ${found[0]} to ${found.at(-1)}` : "reached no other slice";
    this.say(`Propagation from slice ${propagation.slice} ${propagation.how}: ${reached}.`);
  },

  async stop() {
    if (this.propagation) this.propagation.how = "stopped";
    try {
      await this.store.api.post("stop", {});
      await this.store.refresh();
    } catch (error) {
      this.say(error);
    }
  },

  async toggleComparison() {
    if (!this.store.state.has_reference) {
      this.say("There is no reference; start usam-view with --reference=MASK.");
      return;
    }
    this.comparing = !this.comparing;
    this.comparison = null;
    this.restyle();
    if (this.comparing) await this.loadComparison();
  },

  async loadComparison() {
    const revision = this.store.state.revision;
    try {
      this.comparison = { revision, ...(await this.store.api.getJson("comparison")) };
    } catch (error) {
      this.say(error);
    }
    this.draw();
  },

  // Slices by number of wrong voxels, the worst first, without perfect ones.
  worstSlices() {
    const { wrong } = this.comparison;
    const numbers = wrong.map((_, i) => i).filter((i) => wrong[i] > 0);
    return numbers.sort((a, b) => wrong[b] - wrong[a]);
  },

  // The worst slice first, then one after the other.
  async moveToWorst() {
    if (!this.comparing) await this.toggleComparison();
    if (!this.comparison) return;
    const order = this.worstSlices();
    if (!order.length) {
      this.say("The mask equals the reference.");
      return;
    }
    const here = this.cross[0];
    const isOnTheWay = here === this.lastWorst || here === order[0];
    this.lastWorst = isOnTheWay ? order[(order.indexOf(here) + 1) % order.length] : order[0];
    this.moveTo("axial", this.lastWorst);
  },

  async save() {
    const format = document.getElementById("format").value;
    this.saving = true;
    this.draw();
    try {
      const { path, note } = await this.store.api.post("save", { format });
      this.say(`Saved as ${path}${note ? `. Note: ${note}` : ""}`);
    } catch (error) {
      this.say(new Error(`Not saved, and your edits are kept: ${error.message}`));
    }
    this.saving = false;
    try {
      await this.store.refresh();
      if (this.store.state.num_cases > 1) await this.listCases();
    } catch (error) {
      this.say(error);
    }
  },

  async openCase(number) {
    try {
      await this.store.api.open(number);
    } catch (error) {
      if (this.store.api.isGone) {
        document.getElementById("cases").value = String(this.store.state.case);
        return;
      }
      keepNotice(error.message); // the earlier volume is open again
    }
    location.reload();
  },

  openNeighbour(step) {
    const { case: number, num_cases: count } = this.store.state;
    const next = number + step;
    if (next >= 0 && next < count) this.openCase(next);
    else this.say(`This is the ${step > 0 ? "last" : "first"} volume.`);
  },

  toggleHelp() {
    const page = document.getElementById("help-page");
    page.hidden = !page.hidden;
  },
};
