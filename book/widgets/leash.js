// Section 14: the KL leash. A bank of samples of the reference is reweighted live by exp(r / β): reward, KL and effective
// sample size, the curve of all β to slide along, the likeliest answers, and where they lie. Runs of the library chase it.
import { Widget, define, make } from "./kit/base.js";
import { choice, slider, toggle } from "./kit/controls.js";
import { panel } from "./kit/live.js";
import { Plot, number } from "./kit/plot.js";
import { adaptiveBeta, sum, tiltedSamples } from "./num.js";

const LOW = .03, HIGH = 8, STEPS = 90, TRACE = 80, ANSWERS = 64, FEW = 30, NAMES = ["1", "0.5", "0.25", "0.1"];
const signed = (x, digits) => x.toFixed(digits).replace("-", "−");
const percent = (p) => `${p >= .0995 ? Math.round(100 * p) : p < 1e-5 ? "< 0.001" : number(100 * p, 2)}\u00a0%`;

class Leash extends Widget {
  static defaults = { beta: .5, run: "0.5", steer: false, target: 2, horizon: 512 };
  static presets = [["Let go: β → 0", { beta: .03, run: "none" }], ["Hold tight", { beta: 5, run: "none" }], ["Steer to 2 nats", { steer: true }], ["Ziegler’s horizon", { steer: true, horizon: 10000 }]];

  set(change) {
    if (change.run !== undefined && change.run !== "none" && !("beta" in change)) change = { ...change, beta: +change.run };
    else if (change.beta !== undefined && !("run" in change) && +this.state.run !== change.beta) change = { ...change, run: "none" };
    super.set(change);
  }

  build() {
    const d = this.data;
    this.all = sum(d.count);
    this.curve = Array.from({ length: STEPS + 1 }, (_, k) => { const beta = LOW * (HIGH / LOW) ** (k / STEPS); return { beta, ...tiltedSamples(d.reward, beta, d.count), weight: null } });
    this.mean = sum(d.reward.map((r, i) => r * d.count[i])) / this.all;
    this.top = Math.max(...Object.values(d.runs).flat().map((r) => r.end[1]), this.curve[0].kl) + .6;
    this.best = Math.max(...Object.values(d.runs).flat().map((r) => r.end[0]), this.curve[0].reward) + .4;
    this.centre = ["x", "y"].map((a) => sum(d[a].map((v, i) => v * d.count[i])) / this.all);
    this.named = Object.keys(d.text).map(Number);
    const left = make("div", {}, make("p", { class: "pt-title", text: "What the leash allows" })), right = make("div", {}, make("p", { class: "pt-title", text: "Where the answers are" }));
    this.stage.append(make("div", { class: "pt-columns" }, left, right));
    this.path = new Plot(left, { label: "Expected reward over the KL from the reference", height: 290, left: 34, right: 14 });
    this.plane = new Plot(right, { label: "Completions on a plane: the reference's, and the tilted policy's", height: 290, left: 6, right: 6, top: 6, bottom: 22 });
    this.warn = make("p", { class: "pt-note leash-warning", style: "color: var(--bad); font-weight: 600; min-height: 1.5em; margin: .5rem 0" });
    this.steering = make("div", {}, make("p", { class: "pt-title", text: "The controller, step by step" }));
    this.trace = new Plot(this.steering, { label: "KL and β over steps", height: 220, left: 40, right: 52 });
    this.list = make("table", { class: "leash-list", style: "table-layout: fixed; width: 100%" });
    this.stage.append(this.warn, this.steering, make("p", { class: "pt-title", text: "The five likeliest answers" }), this.list);
    this.rows();
    slider(this, "beta", { label: "Weight β of the leash", min: LOW, max: HIGH, log: true, role: "kl" });
    this.beside = choice(this, "run", { label: "Beside it, runs at β =", options: [["none", "none"], ...NAMES.map((n) => [n, n])] });
    toggle(this, "steer", { label: "Steer β to a KL" });
    slider(this, "target", { label: "Target KL", min: .2, max: 6, step: .1, role: "kl", more: true });
    slider(this, "horizon", { label: "Horizon of the controller, in answers", min: 64, max: 20000, log: true, more: true, text: (v) => String(Math.round(v)) });
    this.more.append(panel({ experiment: "leash", settings: () => ({ beta: Math.max(.02, +this.at().beta.toPrecision(3)), steps: 40, seed: 50 }),
      begin: () => { this.lived = []; this.redraw() },
      step: (e) => { this.lived.push([e.metrics.kl, e.metrics.reward_mean]); this.said5 = e.samples.slice(0, 3).map((s) => s.answer); this.redraw() } }));
  }

  rows() {
    const cell = (tag, text) => make(tag, tag === "th" ? { text, scope: "col", style: text === "Answer" ? "" : "width: 4.2rem" } : { style: "height: 3.3em" });
    this.list.append(make("thead", {}, make("tr", {}, ...["Share", "In the bank", "Reward", "Answer"].map((t) => cell("th", t)))));
    const body = make("tbody");
    this.cells = Array.from({ length: 5 }, () => { const cells = Array.from({ length: 4 }, () => cell("td")); body.append(make("tr", {}, ...cells)); return cells });
    this.list.append(body);
  }

  /** KL of the tilt at any β, between the points of the curve. */
  klOf(beta) {
    const k = Math.min(STEPS - 1e-9, Math.max(0, Math.log(beta / LOW) / Math.log(HIGH / LOW) * STEPS)), i = Math.floor(k);
    return this.curve[i].kl + (k - i) * (this.curve[i + 1].kl - this.curve[i].kl);
  }

  /** β whose tilt has a KL. */
  betaOf(kl) {
    let low = Math.log(LOW), high = Math.log(HIGH);
    for (let n = 0; n < 30; n++) { const mid = (low + high) / 2; if (this.klOf(Math.exp(mid)) > kl) low = mid; else high = mid }
    return +Math.exp((low + high) / 2).toPrecision(5);
  }

  /** What the controller makes of β if the policy follows at once: [KL, β] of each step. */
  steered() {
    const { target, horizon } = this.state, found = [];
    for (let k = 0, beta = this.state.beta; k <= TRACE; k++) {
      const kl = this.klOf(beta);
      found.push([kl, beta]);
      beta = Math.min(HIGH, Math.max(LOW, adaptiveBeta(beta, kl, { target, samples: ANSWERS, horizon })));
    }
    return found;
  }

  /** The state that is shown: the tilt at the reader's β, or at the one that the controller came to. */
  at() {
    const way = this.state.steer ? this.steered() : null, beta = way ? way[TRACE][1] : this.state.beta;
    if (this.shown?.beta !== beta) this.shown = { beta, ...tiltedSamples(this.data.reward, beta, this.data.count) };
    return Object.assign(this.shown, { way });
  }

  runs() { return this.state.steer ? this.data.runs.steered : this.data.runs[`β = ${this.state.run}`] || [] }

  draw() {
    const now = this.at(), runs = this.runs();
    this.drawPath(now, runs);
    this.drawPlane(now, runs);
    this.drawList(now);
    this.steering.hidden = !this.state.steer;
    this.beside.style.display = this.state.steer ? "none" : "";  // the steered runs stand there then
    if (this.state.steer) this.drawTrace(now, runs);
    this.warn.textContent = now.effective < FEW ? `Only ${number(now.effective, 2)} effective samples of ${this.all}: from here on the bank says more about itself than about the policy.` : "";
  }

  drawPath(now, runs) {
    const low = Math.min(this.mean, 1) - .3;
    const p = this.path.begin({ x: { min: 0, max: this.top, label: "KL from the reference, in nats" }, y: { min: low, max: this.best, label: "expected reward" } });
    const sure = this.curve.filter((c) => c.effective >= FEW), rest = this.curve.filter((c) => c.effective < FEW), point = (c) => [c.kl, c.reward];
    p.line("sure", sure.map(point), { role: "kl" });
    p.line("rest", [...rest.map(point), ...(sure.length ? [point(sure[0])] : [])], { role: "bad" });
    p.rule("kl", { x: now.kl, role: "quiet", dash: "3 4" });
    const chosen = new Set(runs);
    for (const [arm, by] of Object.entries(this.data.runs)) for (const [k, run] of by.entries()) {
      if (chosen.has(run)) p.line(`${arm}${k}`, run.path[0].map((r, t) => [run.path[1][t], r]), { role: "pol", thin: true });
    }
    const ends = Object.entries(this.data.runs).filter(([arm]) => arm !== "steered" || this.state.steer).flatMap(([arm, by]) => by.map((run) => [arm, run]));
    p.dots("end", ends.map(([arm, run]) => ({ x: run.end[1], y: run.end[0], role: "pol", r: chosen.has(run) ? 5 : 3.5, open: !chosen.has(run), title: `run, ${arm}: KL ${number(run.end[1])}, reward ${number(run.end[0])}` })));
    for (const name of NAMES) {
      const by = this.data.runs[`β = ${name}`] || [], x = sum(by.map((r) => r.end[1])) / by.length, y = Math.min(...by.map((r) => r.end[0]));
      if (by.length) p.text(`n${name}`, x, y, name === "1" ? "run, β = 1" : name, { role: "pol", anchor: name === "1" ? "start" : "middle", dx: name === "1" ? 8 : 0, dy: name === "1" ? 14 : 20, bold: name === this.state.run && !this.state.steer });
    }
    if (this.lived?.length) { p.line("lived", this.lived, { role: "ink", width: 1.5 }); p.dots("lived-end", [{ x: this.lived.at(-1)[0], y: this.lived.at(-1)[1], role: "ink", r: 5 }]) }
    p.handle("here", { x: now.kl, y: now.reward, axis: "x", role: now.effective < FEW ? "bad" : "kl", label: "KL of the best policy", min: this.curve[STEPS].kl, max: this.curve[0].kl, step: .1, text: (v) => `${number(v)} nats, β ${number(now.beta)}`, on: (v) => this.set({ beta: this.betaOf(v), steer: false }) });
    p.end();
  }

  drawPlane(now, runs) {
    const d = this.data, p = this.plane.begin({ x: { min: -20, max: 1020, hide: true, label: "two main directions of the reference’s embedding" }, y: { min: -20, max: 1020, hide: true } });
    this.grey ||= d.x.flatMap((x, i) => [x, d.y[i]]);
    const bins = [1.5, 3, 5, 8, 13, 20], layers = bins.map(() => []);
    for (let i = 0; i < d.x.length; i++) {
      const size = Math.sqrt(now.weight[i]) * 90;
      if (size < 1) continue;
      const k = bins.findIndex((b) => size <= b);
      layers[k < 0 ? bins.length - 1 : k].push(d.x[i], d.y[i]);
    }
    p.cloud([{ points: this.grey, role: "rf", size: 2, alpha: .35 }, ...layers.map((points, k) => ({ points, role: "kl", size: bins[k] + 1, alpha: .55 })),
      { points: runs.flatMap((r) => r.at.flat()), role: "pol", size: 4, alpha: .8 }]);
    const wide = Math.abs(p.px(1) - p.px(0)), tall = Math.abs(p.py(1) - p.py(0)), radius = now.kl / Math.log(this.all) * Math.min(p.width, p.height) * .42;
    p.line("leash", Array.from({ length: 65 }, (_, k) => [this.centre[0] + radius / wide * Math.cos(k * Math.PI / 32), this.centre[1] + radius / tall * Math.sin(k * Math.PI / 32)]), { role: "kl", width: 1.5 });
    p.text("length", this.centre[0], this.centre[1] + radius / tall, `${number(now.kl, 2)} nats`, { role: "kl", anchor: "middle", dy: -7, bold: true });
    p.end();
  }

  drawList(now) {
    const d = this.data, found = this.named.map((i) => [d.logp[i] + d.reward[i] / now.beta, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    const logZ = Math.log(sum(d.reward.map((r, i) => d.count[i] * Math.exp((r - 6) / now.beta))) / this.all) + 6 / now.beta;
    for (const [k, [score, i]] of found.entries()) {
      const share = Math.exp(score - logZ), said = [percent(share), percent(now.weight[i]), signed(d.reward[i], 2), d.text[i]];
      for (const [c, text] of said.entries()) if (this.cells[k][c].textContent !== text) this.cells[k][c].textContent = text;
    }
  }

  drawTrace({ way }, runs) {
    const { target } = this.state, most = Math.max(6, target + 1), p = this.trace.begin({ x: { min: 0, max: TRACE, label: "steps of 64 answers" }, y: { min: 0, max: most, label: "KL per answer, nats" } });
    for (const [k, run] of runs.entries()) p.line(`run${k}`, run.path[1].map((kl, t) => [t, kl]), { role: "pol", thin: true });
    p.rule("goal", { y: target, role: "kl", dash: "6 4" });
    p.line("way", way.map(([kl], t) => [t, kl]), { role: "kl" });
    p.text("beta", TRACE, Math.min(most, way[TRACE][0]), `β ${number(way[TRACE][1], 2)}`, { role: "kl", bold: true, dx: 6, anchor: "start" });
    p.text("runs", 42, runs.length ? runs[0].path[1].at(-1) : 0, "three runs, target 2", { role: "pol", dx: 6, dy: -14 });
    p.handle("target", { x: TRACE * .92, y: target, axis: "y", role: "kl", label: "Target KL", min: .2, max: 6, step: .1, text: (v) => `${number(v)} nats`, on: (v) => this.set({ target: +v.toFixed(2) }) });
    p.end();
  }

  words() {
    const now = this.at(), runs = this.runs(), middle = (k) => sum(runs.map((r) => r.end[k])) / runs.length;
    const who = this.state.steer ? `Steered to ${number(this.state.target)} nats, from β = ${number(this.state.beta)} β goes to ${number(now.beta)} in ${TRACE} steps; there` : `At β = ${number(now.beta)}`;
    const tilt = `${who} the best policy earns ${signed(now.reward, 2)}, where the reference earns ${signed(this.mean, 2)}, at a KL of ${signed(now.kl, 2)} nats; ${number(now.effective, now.effective < 100 ? 2 : 3)} effective samples.`;
    const ran = runs.length ? ` The ${this.state.steer ? "steered runs" : "runs"} ended at reward ${signed(middle(0), 2)} and ${signed(middle(1), 2)} nats.` : "";
    const live = this.lived?.length ? ` Your run is at reward ${signed(this.lived.at(-1)[1], 2)} and ${signed(this.lived.at(-1)[0], 2)} nats; it says, among others: “${this.said5?.[0] || ""}”` : "";
    return tilt + ran + live;
  }
}
define("leash", Leash);
