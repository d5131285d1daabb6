// Prompts, undo, propagation, locks, comparison, saving. Mixed into App.

export const actions = {
  // Prompts.

  async addPoint(x, y, isNegative) {
    const c = isNegative || this.nextNegative ? 0 : this.activeClass;
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
    if (this.isLocked(number)) {
      this.say(`Slice ${number} is locked; unlock it first (L).`);
      return;
    }
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
    const first = Math.min(this.range[0], slice);
    const last = Math.max(this.range[1], slice);
    try {
      await this.store.api.post("propagate", { slice, first, last });
      await this.store.refresh();
    } catch (error) {
      this.say(error);
    }
  },

  async stop() {
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
    this.say("Saving …");
    try {
      const { path, note } = await this.store.api.post("save", { format });
      this.say(`Saved as ${path}${note ? `. Note: ${note}` : ""}`);
    } catch (error) {
      this.say(new Error(`Not saved, and your edits are kept: ${error.message}`));
    }
    await this.store.refresh();
  },

  async openCase(number) {
    try {
      await this.store.api.open(number);
      location.reload();
    } catch (error) {
      this.say(error);
    }
  },

  toggleHelp() {
    const page = document.getElementById("help-page");
    page.hidden = !page.hidden;
  },
};
