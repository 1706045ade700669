// DPO on one pair. Two dials are the log-probabilities of its answers; their distances from the reference, times β, are
// the implicit rewards, whose difference is all that the loss sees. Below, that difference in the five steps that lead
// from a reward model to the loss: one quantity in five pictures.
import { Widget, define, make } from "./kit/base.js";
import { button, slider } from "./kit/controls.js";
import { Plot, number } from "./kit/plot.js";
import * as num from "./num.js";

const CARDS = [
  ["A reward model", "Any r will do that has the right difference: σ(r(chosen) − r(rejected)) is how often the chosen answer wins."],
  ["The best policy for that reward", "log π* = log π_ref + r/β − log Z: up by the reward, down by one number for both. Drawn times β."],
  ["Read backwards", "r = β (log π* − log π_ref) + β log Z: the policy gives the reward back."],
  ["Subtract", "Both answers have the same prompt, so the same β log Z. It is gone: nobody has to sum over all answers."],
  ["DPO’s loss", "The policy that is trained takes the place of π*."],
];
const TIMES = 28;  // px of the arrow that a gradient weight of 1 is drawn with

/** The next of 0.5, 0.75, 1, 1.5, 2, 3, 4, ... that holds a value. @param {number} v */
const room = (v) => { const two = 2 ** Math.max(-1, Math.ceil(Math.log2(Math.max(v, 1e-9)))); return two > .5 && v <= .75 * two ? .75 * two : two };

/** A number with its sign. @param {number} x @param {number} [digits] */
export const signed = (x, digits = 1) => (x > 0 ? "+" : "") + x.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");

/** A pair of the run in words. @param {Element} into @param {string} prompt @param {string[]} chosen its tokens @param {string[]} rejected */
function quote(into, prompt, chosen, rejected) {
  const whole = (tokens) => tokens.slice(0, -1).join("").trim() || "(nothing)";
  const said = [`“${prompt}”`, "Chosen: ", whole(chosen), "Rejected: ", whole(rejected)];
  if (into.dataset.said === said.join()) return;
  into.dataset.said = said.join();
  into.replaceChildren(said[0], make("br"), make("b", { text: said[1] }), said[2], make("br"), make("b", { text: said[3] }), said[4]);
}

/** A share as a percentage. @param {number} p */
const percent = (p) => p > .9995 || p < .0005 ? `${number(100 * p, p < .5 ? 1 : 5)}\u00a0%` : `${(100 * p).toFixed(p > .99 || p < .01 ? 1 : 0)}\u00a0%`;

/** The curve -log σ(m) over a plot's axis, or with a share of flipped labels cDPO's. @param {Plot} plot @param {number} smooth @param {string} [key] @param {Object} [o] */
export function lossCurve(plot, smooth, key = "curve", o = {}) {
  const { min, max } = plot.x, points = [];
  for (let i = 0; i <= 60; i++) { const m = min + (max - min) * i / 60; points.push([m, num.dpo(m, 0, 0, 0, 1, smooth).loss]) }
  plot.line(key, points, o);
}

class OneLoss extends Widget {
  static defaults = { w: 2, l: -6, beta: .1, logz: 12, pair: 40, smooth: 0 };
  static presets = [["At the start", { w: 0, l: 0 }], ["Break it: let both fall", { w: -8, l: -24 }], ["The paper’s setting", { beta: .1, smooth: 0 }]];

  build() {
    this.text = make("p", { class: "pt-note" });
    const left = make("div", {}, make("p", { class: "pt-title", text: "Two log-probabilities" }));
    const right = make("div", {}, make("p", { class: "pt-title", text: "One loss" }));
    this.stage.append(this.text, make("div", { class: "pt-columns" }, left, right));
    this.dials = new Plot(left, { label: "Log-probabilities of both answers against the reference", height: 290, left: 40, right: 10, top: 22, bottom: 26 });
    this.curve = new Plot(right, { label: "The loss over the margin", height: 290, left: 34, right: 14, top: 22 });
    const into = make("div", { class: "pt-controls", style: "margin-top: .8rem" });  // between what they move above and below
    this.stage.append(into, make("p", { class: "pt-title", style: "margin-top: .8rem", text: "The same difference in five steps" }));
    this.cards = CARDS.map(([title, why], i) => {
      const value = make("b", { style: "color: var(--rew); display: block" }), cell = make("div", {});
      const words = make("div", {}, make("p", { class: "pt-title", text: `${i + 1}. ${title}` }), make("p", { class: "pt-note" }, `${why} `, value));
      this.stage.append(make("div", { class: "pt-columns", style: "gap: .2rem 1.2rem; margin-top: .7rem" }, words, cell));
      const last = i === CARDS.length - 1;
      return { value, plot: new Plot(cell, { label: title, height: last ? 104 : 62, left: 66, right: 8, top: 6, bottom: last ? 36 : 4 }) };
    });
    slider(this, "beta", { label: "β", min: .01, max: 1, log: true, role: "kl", into });
    slider(this, "logz", { label: "log Z, which nobody knows", min: -20, max: 30, step: 1, text: (v) => signed(v, 0), into });
    slider(this, "pair", { label: "Pair of the run", min: 0, max: this.data.pairs.length - 1, step: 1, text: (v) => String(v + 1), more: true });
    slider(this, "smooth", { label: "Share of labels taken for flipped (cDPO)", min: 0, max: .45, step: .01, role: "bad", more: true });
    button(this, { label: "What the run did to this pair", more: true, on: () => this.set(this.after()) });
  }

  /** How the run's last step left this pair. */
  after() { const [, , , , , w, l] = this.data.pairs[this.state.pair]; return { w: num.sum(w) / 10, l: num.sum(l) / 10, beta: this.data.beta } }

  draw() {
    const { w, l, beta, pair, smooth } = this.state;
    this.widths = new Map([this.dials, this.curve, ...this.cards.map((c) => c.plot)].map((p) => [p, p.box.clientWidth]));  // read before any write
    const [prompt, chosen, rejected, refW, refL] = this.data.pairs[pair];
    const ref = [refW / 10, refL / 10], at = [Math.min(0, ref[0] + w), Math.min(0, ref[1] + l)];
    this.at = at; this.ref = ref;
    this.found = num.dpo(at[0], at[1], ref[0], ref[1], beta, smooth);
    quote(this.text, prompt, chosen, rejected);
    this.drawDials(at, ref);
    this.drawCurve();
    this.drawCards();
  }

  drawDials(at, ref) {
    const low = 5 * Math.floor((Math.min(...ref) - 26) / 5), plot = this.dials;
    const { weight, rewardChosen, rewardRejected } = this.found;
    const width = this.widths.get(plot);
    plot.begin({ width, x: { min: .35, max: 2.75, hide: true }, y: { min: low, max: 0, label: "nats" } });
    for (const [i, name, key] of [[0, "chosen", "w"], [1, "rejected", "l"]]) {
      const x = i + .85 + .1 * i, u = at[i] - ref[i], reward = i ? rewardRejected : rewardChosen, role = reward < 0 ? "bad" : "rew";
      plot.text(`name${i}`, x, low, name, { anchor: "middle", dy: 20, role: "ink", bold: true });
      plot.line(`ref${i}`, [[x - .25, ref[i]], [x + .25, ref[i]]], { role: "rf" });
      plot.text(`refname${i}`, x + .28, ref[i], width < 380 ? "ref." : "reference", { role: "rf" });
      plot.mark(`gap${i}`, "rect", plot.inside, { class: `pt-bar ${role}`, x: plot.px(x) - 5, width: 10, y: Math.min(plot.py(at[i]), plot.py(ref[i])), height: Math.abs(plot.py(at[i]) - plot.py(ref[i])) });
      const far = Math.abs(plot.py(at[i]) - plot.py(ref[i])) > 34, y = far ? (at[i] + ref[i]) / 2 : at[i];
      plot.text(`reward${i}`, x + .09, y, width < 380 ? signed(reward, 2) : `β · ${signed(u)} = ${signed(reward, 2)}`, { role, dy: far ? 4 : u < 0 ? 26 : -18 });
      push(plot, `push${i}`, x, at[i], (i ? 1 : -1) * TIMES * weight * Math.sign(weight));
      plot.handle(`dial${i}`, { x, y: at[i], axis: "y", role: "pol", step: .5, min: low, max: 0,
        label: `log-probability of the ${name} answer`, text: (v) => `${number(v)} nats, ${signed(v - ref[i])} from the reference`,
        on: (v) => this.set({ [key]: v - ref[i] }) });
    }
    plot.end();
  }

  drawCurve() {
    const { margin, loss, weight } = this.found, { smooth } = this.state, reach = room(Math.max(4, Math.abs(margin) * 1.05)), plot = this.curve;
    plot.begin({ width: this.widths.get(plot), x: { min: -reach, max: reach, label: "margin β · h" }, y: { min: 0, max: reach * 1.1, label: "loss, minimised" } });
    plot.rule("zero", { x: 0, dash: "4 4" });
    if (smooth) lossCurve(plot, 0, "dpo", { role: "quiet", thin: true });
    lossCurve(plot, smooth);
    const run = reach * .34;
    plot.line("tangent", [[margin - run, loss + weight * run], [margin + run, loss - weight * run]], { role: "pol", width: 2 });
    plot.text("weight", reach, reach * 1.1, `slope ${signed(-weight, 2)}`, { role: "pol", anchor: "end", dy: 12, bold: true });
    plot.text("loss", reach, reach * 1.1, `loss ${loss.toFixed(3)}`, { role: "ink", anchor: "end", dy: 30, bold: true });
    plot.handle("dot", { x: margin, y: loss, axis: "x", role: "rew", step: reach / 100, min: -reach, max: reach,
      label: "margin: moves both dials by the same amount", text: (v) => signed(v, 2), on: (v) => this.spread(v - margin) });
    plot.end();
  }

  /** Change the margin by moving both dials, each as far as the other. */
  spread(by) {
    const each = by / this.state.beta / 2;
    this.set({ w: Math.min(-this.ref[0], this.at[0] - this.ref[0] + each), l: Math.min(-this.ref[1], this.at[1] - this.ref[1] - each) });
  }

  drawCards() {
    const { beta, logz, smooth } = this.state, { margin, rewardChosen: w, rewardRejected: l, loss } = this.found;
    const shift = beta * logz, both = [w, l], reward = both.map((x) => x + shift);
    const reach = room(1.12 * Math.max(...both.map(Math.abs), ...reward.map(Math.abs), Math.abs(shift), Math.abs(margin), .2));
    const m = signed(margin, 2);
    const say = [`σ(${m}) = ${percent(num.sigmoid(margin))}.`, `Gap: β · ${signed(margin / beta)} = ${m}.`, `Difference: ${m}.`,
      `${signed(w, 2)} − (${signed(l, 2)}) = ${m}.`, `−log σ(${m}) = ${(-num.logsigmoid(margin)).toFixed(3)}.`];
    if (smooth) say[4] = `With ${percent(smooth)} taken for flipped: ${loss.toFixed(3)}.`;
    for (const [i, card] of this.cards.entries()) {
      if (card.value.textContent !== say[i]) card.value.textContent = say[i];
      const plot = card.plot, last = i === 4, y = last ? room(reach) * 1.1 : 3;
      plot.begin({ width: this.widths.get(plot), x: { min: -reach, max: reach, hide: !last, label: last ? "reward" : undefined }, y: { min: 0, max: y, hide: true } });
      plot.rule("zero", { x: 0, role: "rf", dash: "4 4" });
      const ends = i === 0 || i === 2 ? reward : last ? [margin, 0] : both;
      plot.area("gap", { x1: Math.min(...ends), x2: Math.max(...ends), role: margin < 0 ? "bad" : "rew" });
      if (last) this.drawLast(plot, smooth);
      else for (const k of [0, 1]) this.drawBar(plot, i, k, both[k], reward[k], shift);
      plot.end();
    }
  }

  /** One answer in one card: what leads from 0 to the card's end. */
  drawBar(plot, card, k, implied, reward, shift) {
    const y = 2.15 - 1.3 * k, role = "rew";
    plot.text(`name${k}`, plot.x.min, y, k ? "rejected" : "chosen", { anchor: "end", dx: -6 });
    if (card === 0) bar(plot, `a${k}`, y, 0, reward, role);
    if (card === 1) { bar(plot, `a${k}`, y + .2, 0, reward, role, 6); bar(plot, `b${k}`, y - .25, reward, implied, "quiet", 6); tick(plot, `e${k}`, y, implied) }
    if (card === 2) { bar(plot, `a${k}`, y + .2, 0, implied, "pol", 6); bar(plot, `b${k}`, y - .25, implied, implied + shift, "quiet", 6); tick(plot, `e${k}`, y, reward) }
    if (card === 3) bar(plot, `a${k}`, y, 0, implied, "pol");
  }

  drawLast(plot, smooth) {
    const { margin, loss } = this.found;
    lossCurve(plot, smooth);
    plot.line("stem", [[margin, 0], [margin, loss]], { role: "rew", width: 2 });
    plot.dots("dot", [{ x: margin, y: Math.min(loss, plot.y.max), role: "rew", r: 5 }]);
  }

  words() {
    const { beta, smooth } = this.state, { margin, loss, weight } = this.found;
    const go = (i) => { const u = this.at[i] - this.ref[i]; return Math.abs(u) < .05 ? "as likely as before" : `${Math.abs(u).toFixed(1)} nats ${u > 0 ? "more" : "less"} likely` };
    const both = this.at[0] < this.ref[0] - .05 && margin > 0 ? " The loss has fallen, and so has the chosen answer." : "";
    return `At β = ${number(beta)}, the chosen answer is ${go(0)}, the rejected one ${go(1)}: margin ${signed(margin, 2)}, ` +
      `loss ${loss.toFixed(3)} (0.693 at the start), gradient weight ${Math.abs(weight).toFixed(2)}${smooth ? `, with ${percent(smooth)} of the labels taken for flipped` : ""}.${both}`;
  }
}

/** A horizontal bar between two values. */
function bar(plot, key, y, from, to, role, thick = 11) {
  const a = plot.px(from), b = plot.px(to);
  plot.mark(key, "rect", plot.inside, { class: `pt-bar ${role}`, x: Math.min(a, b), width: Math.max(.5, Math.abs(b - a)), y: plot.py(y) - thick / 2, height: thick });
}

/** The end of a row, marked. */
const tick = (plot, key, y, x) => plot.mark(key, "line", plot.inside, { class: "pt-rule ink", "stroke-width": 2.5, x1: plot.px(x), x2: plot.px(x), y1: plot.py(y) - 11, y2: plot.py(y) + 11 });

/** Where the gradient step pushes a dial, as an arrow of some px; downwards is positive. */
function push(plot, key, x, y, px) {
  const a = plot.px(x) - 15, b = plot.py(y), tip = Math.sign(px) * 6;
  plot.mark(key, "path", plot.front, { class: "pt-push", fill: "none", stroke: "var(--pol)", "stroke-width": 2, d: Math.abs(px) < 1 ? "" : `M${a},${b}v${px}m-4,${-tip}l4,${tip}l4,${-tip}` });
}

define("one-loss", OneLoss);
