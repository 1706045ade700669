// "Resample the group": a group of answers from a model in the page, its advantages, and training on them.
import { ANSWERS, MOST, text, verdict } from "./adder.js";
import { advantages, tokenWeights } from "./group.js";
import { Widget, define, make, still } from "./kit/base.js";
import { button, choice, slider, toggle } from "./kit/controls.js";
import { Plot, number } from "./kit/plot.js";
import { panel } from "./kit/live.js";
import { ask, models, stop } from "./kit/remote.js";
import { Columns } from "./kit/columns.js";

const PROBLEMS = ["4975", "8679", "1122", "9899"];
const many = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

class ResampleGroup extends Widget {
  static defaults = { digits: "4975", size: 8, temperature: 1, normalise: "std", average: "answer", seed: 3, before: false, chosen: 4 };
  static presets = [["R1-Zero’s setting", { size: 16 }], ["Two answers", { size: 2, seed: 4 }], ["Break it: none is right", { digits: "8679", seed: 1 }]];

  async load() {
    const answer = await fetch(`${models()}adder/poster.json`);
    if (!answer.ok) throw new Error(`its first group did not come (${answer.status})`);
    this.poster = await answer.json();
  }

  build() {
    this.group = this.poster.answers;
    this.shown = this.key(this.poster);
    Object.assign(this, { trained: 0, rewards: [], busy: "", problem: "", shares: null });
    this.columns = new Columns(this.stage, { label: "Answers of the group, one per column", on: (i) => this.set({ chosen: i }) });
    this.line = new Plot(this.stage, { label: "Rewards of the group on a line", height: 78, top: 22, bottom: 30, left: 46 });
    this.history = make("div", {});
    this.stage.append(this.history);
    this.past = new Plot(this.history, { label: "Share of right answers in each step of training", height: 150 });
    this.row = make("div", { class: "pt-foot group-actions" });
    this.stage.append(this.row);
    const into = this.row, free = () => !this.busy;
    button(this, { label: "Resample", into, enabled: free, on: () => this.set({ seed: (this.state.seed + 1) % 100000 }) });
    button(this, { label: "One step", into, enabled: free, on: () => this.train(1) });
    button(this, { label: () => this.busy === "training" ? "Stop" : "Ten steps", into, enabled: () => free() || this.busy === "training", on: () => this.busy ? stop() : this.train(10) });
    button(this, { label: "Undo a step", into, enabled: () => free() && this.trained > 0, on: () => this.back() });
    slider(this, "size", { label: "Group size G", min: 2, max: 16, step: 1 });
    choice(this, "normalise", { label: "Advantage", options: [["std", "divided by std"], ["none", "not divided"]] });
    slider(this, "temperature", { label: "Temperature", min: 0.2, max: 3, step: 0.1 });
    choice(this, "average", { label: "Average over", options: [["answer", "each answer"], ["token", "all tokens"], ["constant", "a constant"]], more: true });
    choice(this, "digits", { label: "Problem", options: PROBLEMS.map((d) => [d, [...d].join("+")]), more: true });
    const settings = () => ({ group_size: this.state.size, normalise: this.state.normalise });
    this.live = [];
    this.more.append(panel({ experiment: "resampled", settings, begin: () => { this.live = []; super.redraw() },
      step: (event) => { this.live.push(event.metrics.reward_mean); super.redraw() } }));
    toggle(this, "before", { label: "Answers of the frozen copy, from before training", more: true });
  }

  key(s) { return [s.digits, s.size, s.temperature, s.seed, !!s.before].join() }

  /** A change of what the group depends on asks for a new one, after a moment. */
  redraw() {
    super.redraw();
    if (!this.columns || this.key(this.state) === this.shown) return;
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.resample(), 200);
  }

  /** One thing at a time; what fails is said. */
  async doing(name, work) {
    if (this.busy) return;
    this.busy = name; this.problem = "";
    this.redraw();
    try { await ask("adder"); await work() } catch (error) { this.problem = `The model could not go on: ${error.message}.` }
    this.busy = "";
    this.redraw();
  }

  resample(again = false) {
    if (!again && this.key(this.state) === this.shown) return Promise.resolve();
    return this.doing("sampling", () => this.sampling());
  }

  async sampling() {
    const { digits, size, temperature, seed, before } = this.state, key = this.key(this.state);
    const group = Array.from({ length: size }, () => []);
    this.group = group; this.shown = key;
    const said = ({ said: tokens }) => { for (const s of tokens) group[s.slot].push(s.token); super.redraw() };
    await ask("group", { digits, size, temperature, seed, before, pause: still() ? 0 : 35 }, said);
  }

  train(count) {
    return this.doing("training", async () => {
      const { digits, size, temperature, normalise, average, seed } = this.state;
      const on = ({ step }) => { this.trained++; this.rewards.push(step.reward); this.ms = step.ms; super.redraw() };
      await ask("steps", { digits, count, how: { size, temperature, normalise, average }, seed: 1000 * seed + 2 * this.trained }, on);
      this.shares = await ask("share", { digits, temperature, seed: seed + 17 });
      this.shares.of = `${digits} ${temperature}`;
      await this.sampling();
    });
  }

  back() {
    return this.doing("undoing", async () => {
      const { undone } = await ask("undo", { count: 1 });
      this.trained -= undone; this.rewards.length -= undone; this.shares = null;
      await this.sampling();
    });
  }

  numbers() {
    const { digits, normalise, average } = this.state, group = this.group;
    const rewards = group.map((tokens) => verdict(digits, tokens)), over = this.busy !== "sampling";
    const a = over ? advantages(rewards, normalise) : rewards.map(() => 0);
    const w = tokenWeights(group.map((t) => Math.max(1, t.length)), average, MOST);
    const mean = rewards.reduce((x, r) => x + r, 0) / rewards.length;
    const std = Math.sqrt(rewards.reduce((x, r) => x + (r - mean) ** 2, 0) / (rewards.length - 1));
    return { rewards, a, w, mean, std, over };
  }

  draw() {
    const n = this.found = this.numbers(), most = Math.max(1e-9, ...n.a.map((x, i) => Math.abs(x * n.w[i])));
    const { digits, normalise } = this.state, chosen = Math.min(this.state.chosen, this.group.length - 1);
    this.columns.draw({
      width: this.width, head: `${[...digits].join("+")}=`, chosen, range: normalise === "std" ? Math.max(2, ...n.a.map(Math.abs)) : 1,
      columns: this.group.map((tokens, i) => ({
        tokens: [...text(tokens)].concat(tokens.at(-1) === 1 ? ["⏎"] : []), reward: n.over ? n.rewards[i] : null, advantage: n.a[i],
        tint: Math.abs(n.a[i] * n.w[i]) / most,
      })),
    });
    this.numberLine(n);
    this.history.hidden = !this.trained && !this.live.length;
    if (!this.history.hidden) this.told();
  }

  numberLine({ rewards, mean, std, over }) {
    const p = this.line.begin({ x: { min: -0.25, max: 1.25, ticks: [0, 1], label: "reward of an answer" }, y: { min: 0, max: 1, hide: true }, width: this.width });
    const right = rewards.filter(Boolean).length, counts = [rewards.length - right, right];
    if (over) {
      p.area("spread", { x1: mean - std, x2: mean + std, role: "quiet" });
      p.rule("mean", { x: mean, role: "ink" });
      p.text("said", mean, 1, `mean ${number(mean)}, std ${number(std)}`, { anchor: mean > 0.6 ? "end" : "start", dx: mean > 0.6 ? -6 : 6, dy: 2, role: "ink" });
      const gap = Math.min(0.035, 0.4 / rewards.length);
      const dots = counts.flatMap((n, reward) => Array.from({ length: n }, (_, i) => ({ x: reward + (i - (n - 1) / 2) * gap, y: 0.35, role: reward ? "rew" : "bad", shape: reward ? "up" : "down" })));
      p.dots("answers", dots, { r: 4.5 });
    }
    p.end();
  }

  told() {
    const n = this.rewards.length, p = this.past.begin({ x: { min: 1, max: Math.max(10, n, this.live.length), label: "step of training" }, y: { min: 0, max: 1, label: "right, of 64 answers to all kinds of sums" }, width: this.width });
    p.line("reward", this.rewards.map((r, i) => [i + 1, r]), { role: "pol" });
    if (n) p.dots("last", [{ x: n, y: this.rewards.at(-1), role: "pol" }]);
    p.line("live", this.live.map((r, i) => [i + 1, r]), { role: "old" });
    if (this.live.length) p.text("live-name", this.live.length, this.live.at(-1), "the library’s run, on its base", { role: "old", anchor: "end", dy: -8 });
    p.end();
  }

  words() {
    const { rewards, a, mean, std, w } = this.found, { digits, normalise, temperature, before } = this.state, g = rewards.length;
    if (this.problem) return this.problem;
    if (this.busy === "sampling") return `The model in this page is writing ${g} answers to ${[...digits].join("+")}.`;
    if (this.busy === "training") return `Training: ${many(this.trained, "step")} done${this.ms ? `, the last in ${number(this.ms / 1000, 2)} s` : ""}; ${ANSWERS} new answers in each.`;
    const right = rewards.filter(Boolean).length, who = before ? "The model from before training" : this.trained ? `After ${many(this.trained, "step")} the model` : "The model";
    const first = `${who} is right in ${right} of ${g} answers.`;
    if (right === 0 || right === g) return `${first} All rewards are equal, so every advantage is 0 and this group teaches nothing.${this.shared()}`;
    const up = Math.max(...a), down = Math.min(...a), i = Math.min(this.state.chosen, g - 1);
    const rule = normalise === "std" ? `mean ${number(mean)} and sample std ${number(std)}` : `mean ${number(mean)}, not divided by a std`;
    return `${first} With ${rule} a right one gets advantage ${number(up)}, a wrong one ${number(down)}. Answer ${i + 1}, ${text(this.group[i])}, is ${rewards[i] ? "right" : "wrong"}: each of its ${this.group[i].length} tokens weighs ${number(w[i] * a[i], 2)} in this group’s update.${this.shared()}`;
  }

  shared() {
    const { digits, temperature } = this.state, s = this.shares;
    return this.trained && s?.of === `${digits} ${temperature}` ? ` Of 64 fresh answers to this sum ${Math.round(100 * s.now)} % are right, before training ${Math.round(100 * s.before)} %.` : "";
  }
}
define("resample-group", ResampleGroup);
