// 200 pairs of a recorded run of DPO in the plane of their two probabilities: how far the chosen answer moved, to the
// right, and the rejected one, upwards. Below the diagonal the pair is in order; where on that side, the loss cannot see.
import { Widget, define, make } from "./kit/base.js";
import { button, slider } from "./kit/controls.js";
import { Plot } from "./kit/plot.js";
import { strip } from "./kit/tokens.js";
import { lossCurve, signed } from "./one-loss.js";
import * as num from "./num.js";

class Replay extends Widget {
  static defaults = { step: 20, pair: 40 };
  static presets = [["First step", { step: 0 }], ["Last step", { step: 20 }]];

  build() {
    this.beta = this.data.beta;
    this.paths = this.data.pairs.map((p) => [running(p[5]), running(p[6])]);
    this.ends = [0, 1].map((side) => {
      const all = this.paths.flatMap((p) => p[side]);
      return [5 * Math.floor(Math.min(...all) / 5), 5 * Math.ceil(Math.max(...all, 1) / 5)];
    });
    const left = make("div", {}, make("p", { class: "pt-title", text: "200 pairs, from where they began" }));
    const right = make("div", {}, make("p", { class: "pt-title", text: "The same pairs on the loss" }));
    const all = this.paths.flatMap(([w, l]) => w.map((x, k) => this.beta * (x - l[k])));
    this.span = [Math.floor(Math.min(...all)), Math.ceil(Math.max(...all))];
    this.text = make("p", { class: "pt-note", style: "margin-top: .8rem" });
    this.stage.append(make("div", { class: "pt-columns" }, left, right), this.text);
    this.strips = ["Chosen", "Rejected"].map((name) => {
      const title = make("p", { class: "pt-note", style: "margin: .5rem 0 .1rem" });
      this.stage.append(title);
      return { name, title, tokens: strip(this.stage, { label: `${name} answer, token by token` }) };
    });
    this.plane = new Plot(left, { label: "Change of both log-probabilities, an arrow for each pair", height: 330, left: 40, right: 12, top: 22 });
    this.curve = new Plot(right, { label: "Margins of the pairs on the curve of the loss", height: 330, left: 34, right: 14, top: 22 });
    this.plane.svg.addEventListener("click", (e) => this.set({ pair: this.nearest(this.plane.atPointer(e)) }));
    const { scored } = this.data;
    slider(this, "step", { label: "Optimizer step", min: 0, max: scored.length - 1, step: 1, text: (v) => `${scored[v]} of ${scored.at(-1)}` });
    slider(this, "pair", { label: "Pair (or click an arrow)", min: 0, max: this.paths.length - 1, step: 1, text: (v) => String(v + 1) });
    button(this, { label: "Play", on: () => this.play() });
  }

  play() {
    if (this.stop) this.stop();
    const last = this.data.scored.length - 1;
    this.stop = this.animate(3000, (share) => this.set({ step: Math.round(last * share) }));
  }

  /** The pair whose head is nearest on the screen. */
  nearest({ x, y }) {
    const far = this.paths.map(([w, l]) => Math.hypot(this.plane.px(w[this.state.step]) - this.plane.px(x), this.plane.py(l[this.state.step]) - this.plane.py(y)));
    return far.indexOf(Math.min(...far));
  }

  draw() {
    const { step, pair } = this.state, heads = this.paths.map(([w, l]) => [w[step], l[step]]);
    this.margins = heads.map(([w, l]) => this.beta * (w - l));
    this.heads = heads;
    this.drawPlane(heads, pair);
    this.drawCurve(pair);
    this.drawTokens(pair);
  }

  /** Both answers of a pair: what each token's implicit reward came to by the last step. */
  drawTokens(pair) {
    const [prompt, ...found] = this.data.pairs[pair], said = `“${prompt}” After the last step, token by token: what the policy makes more likely than the reference (solid), and what less (dotted).`;
    if (this.shown === pair) return;
    this.shown = pair;
    this.text.textContent = said;
    for (const [i, { name, title, tokens }] of this.strips.entries()) {
      const worth = found[6 + i];
      title.textContent = `${name}: implicit reward ${signed(num.sum(worth) / 100, 2)}`;
      tokens.show(found[i].map((text, k) => ({ text, role: Math.abs(worth[k]) < 3 ? "" : worth[k] < 0 ? "bad" : "rew", tint: Math.min(1, Math.abs(worth[k]) / 60),
        mark: Math.abs(worth[k]) < 3 ? "" : worth[k] < 0 ? "dotted" : "solid", title: signed(worth[k] / 100, 2) })));
    }
  }

  drawPlane(heads, pair) {
    const [[x1, x2], [y1, y2]] = this.ends, plot = this.plane, step = this.state.step;
    plot.begin({ x: { min: x1, max: x2, label: "change of log π(chosen), nats" }, y: { min: y1, max: y2, label: "change of log π(rejected), nats" } });
    const from = Math.max(x1, y1);
    plot.band("order", [[from, y1, from], [Math.min(x2, y2), y1, Math.min(x2, y2)], [x2, y1, Math.min(x2, y2)]], { role: "pol" });
    plot.line("diagonal", [[from, from], [Math.min(x2, y2), Math.min(x2, y2)]], { role: "quiet", width: 1.2 });
    plot.rule("x", { x: 0, role: "rf", dash: "4 4" });
    plot.rule("y", { y: 0, role: "rf", dash: "4 4" });
    const parts = { pol: ["", []], bad: ["", []] }, origin = `M${plot.px(0).toFixed(1)},${plot.py(0).toFixed(1)}L`;
    for (const [w, l] of heads) {
      const part = parts[w > l ? "pol" : "bad"];
      part[0] += `${origin}${plot.px(w).toFixed(1)},${plot.py(l).toFixed(1)}`;
      part[1].push(w, l);
    }
    for (const [role, [d]] of Object.entries(parts)) plot.mark(`shafts-${role}`, "path", plot.inside, { class: role, d: d || "M0,0", fill: "none", stroke: "currentColor", "stroke-width": 1, opacity: .28 });
    plot.cloud(Object.entries(parts).map(([role, [, points]]) => ({ points, role, size: 4.5, alpha: .8 })));
    plot.line("trail", this.paths[pair][0].slice(0, step + 1).map((w, i) => [w, this.paths[pair][1][i]]), { role: "ink", width: 2 });
    plot.dots("picked", [{ x: heads[pair][0], y: heads[pair][1], role: "ink", r: 6, open: true }]);
    plot.text("below", from, y1, "below the line: in order", { role: "pol", dx: 10, dy: -10, bold: true });
    plot.end();
  }

  drawCurve(pair) {
    const plot = this.curve, [min, max] = this.span, high = -num.logsigmoid(min), loss = this.margins.map((m) => -num.logsigmoid(m));
    this.loss = num.mean(loss);
    plot.begin({ x: { min, max, label: `margin, β = ${this.beta}` }, y: { min: 0, max: high, label: "loss, minimised; grey: how many pairs" } });
    const counts = Array(5 * (max - min)).fill(0);
    for (const m of this.margins) counts[Math.min(counts.length - 1, Math.floor((m - min) * 5 + 1e-9))]++;
    plot.bars("count", counts.map((n, i) => ({ x: min + (i + .5) / 5, y: Math.min(high, n / 40 * high) })), { role: "quiet", width: .18 });
    plot.rule("zero", { x: 0, dash: "4 4" });
    lossCurve(plot, 0);
    const points = { pol: [], bad: [] };
    for (const [i, m] of this.margins.entries()) points[m > 0 ? "pol" : "bad"].push(m, loss[i]);
    plot.cloud(Object.entries(points).map(([role, p]) => ({ points: p, role, size: 6, alpha: .35 })));
    plot.dots("picked", [{ x: this.margins[pair], y: loss[pair], role: "ink", r: 6, open: true }]);
    plot.rule("mean", { y: this.loss, role: "ink", dash: "2 3" });
    plot.text("name", max, this.loss, `mean loss ${this.loss.toFixed(3)}`, { role: "ink", anchor: "end", dy: -8, bold: true });
    plot.end();
  }

  words() {
    const { step, pair } = this.state, n = this.heads.length, { scored } = this.data;
    const count = (test) => this.heads.filter(test).length;
    const [w, l] = this.heads[pair];
    return `After ${scored[step]} of ${scored.at(-1)} steps, ${count(([a, b]) => a > b)} of ${n} pairs are in order; ` +
      `${count(([a]) => a < 0)} chosen answers are less likely than at the start, and in ${count(([a, b]) => a < 0 && b < 0)} pairs both are. ` +
      `Pair ${pair + 1}: chosen ${signed(w)} nats, rejected ${signed(l)}, margin ${signed(this.margins[pair], 2)}.`;
  }
}

/** Tenths of a nat by which something moved, added up from 0. @param {number[]} moves */
function running(moves) {
  const found = [0];
  for (const m of moves) found.push(found.at(-1) + m);
  return found.map((v) => v / 10);
}

define("dpo-replay", Replay);
