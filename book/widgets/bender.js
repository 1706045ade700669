// Two next-token distributions of the embedded base, before and after fine-tuning, whose bars can be dragged. Below them
// entropy, cross-entropy and KL as lengths that add up; in the second tab the three estimators on samples, as clouds.
import { Widget, define, make } from "./kit/base.js";
import { button, choice, slider } from "./kit/controls.js";
import { Plot, number } from "./kit/plot.js";
import * as num from "./num.js";

const ROW = 46, CLOUD = 300, MOST = 64;
const NAMES = ["k₁", "k₂", "k₃"], ESTIMATORS = [num.k1, num.k2, num.k3];
const said = (x, digits = 3) => Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : "∞";
const shown = (token) => token.replace("<|endoftext|>", "(end)").replaceAll("\n", "↵").replace(/^ /, "·");

/** One bar set to a share, the others keep their proportions. @param {number[]} p @param {number} i @param {number} to */
export function bent(p, i, to) {
  const rest = 1 - p[i];
  return p.map((v, k) => k === i ? to : rest > 1e-12 ? v * (1 - to) / rest : (1 - to) / (p.length - 1));
}

class Bender extends Widget {
  static defaults = { tab: "bend", place: 0, side: "pol", tau: 1, way: "reverse", p: null, q: null, n: 4, seed: 1 };
  static presets = [
    ["Break it: forbid a token", { place: 0, q: [0.38, 0.31, 0.215, 0, 0.01, 0.01, 0.01, 0.065] }],
    ["Equal", { p: [.3, .3, .1, .1, .05, .05, .05, .05], q: [.3, .3, .1, .1, .05, .05, .05, .05] }],
    ["The text’s three tokens", { p: [.5, .3, .2, 0, 0, 0, 0, 0], q: [.25, .25, .5, 0, 0, 0, 0, 0] }],
  ];

  build() {
    this.places = this.data.map((d) => ({ ...d, tokens: [...d.tokens, "(all others)"], base: whole(d.base), tuned: whole(d.tuned) }));
    choice(this, "tab", { label: "View", tabs: true, into: this.stage, options: [["bend", "Bend"], ["estimate", "Estimate from samples"]] });
    this.text = make("p", { class: "pt-note" });
    this.bars = make("div", {}), this.clouds = make("div", {});
    this.stage.append(this.text, this.bars, this.clouds);
    this.plot = new Plot(this.bars, { label: "Two next-token distributions", left: 92, right: 8, top: 24, bottom: 8 });
    this.sums = new Plot(this.bars, { label: "Entropy and KL add up to cross-entropy", left: 92, right: 8, top: 8, bottom: 34, height: 150 });
    this.cloud = new Plot(this.clouds, { label: "Estimates of the KL from samples", left: 34, right: 14, top: 12, bottom: 40, height: 300 });
    choice(this, "place", { label: "Next token after …", options: this.places.map((d, i) => [i, ["sailor.", "12.", "is a", "hot?"][i] ?? String(i)]) });
    slider(this, "tau", { label: "Temperature of the policy", min: .2, max: 3, log: true, role: "pol" });
    this.way = choice(this, "way", { label: "Direction of KL", options: [["reverse", "KL(π‖ref)"], ["forward", "KL(ref‖π)"]] });
    this.n = slider(this, "n", { label: "Samples per estimate", min: 1, max: MOST, step: 1 });
    this.again = button(this, { label: "Sample again", on: () => this.set({ seed: this.state.seed % 997 + 1 }) });
    choice(this, "side", { label: "Handles bend", more: true, options: [["pol", "the policy"], ["rf", "the reference"]] });
    button(this, { label: "Back to the recorded bars", more: true, on: () => this.set({ p: null, q: null }) });
    const next = num.random(7);
    this.uniform = Float64Array.from({ length: CLOUD * MOST }, next);
    this.jitter = Float64Array.from({ length: CLOUD }, next);
  }

  draw() {
    const { tab, place, p, q, tau } = this.state, at = this.places[place];
    const plain = fits(p) ? p : at.tuned;
    this.plain = plain;
    this.pol = tau === 1 ? plain : num.softmax(plain.map((v) => Math.log(v)), tau);
    this.ref = fits(q) ? q : at.base;
    const bend = tab === "bend";
    for (const [element, on] of [[this.bars, bend], [this.clouds, !bend], [this.way, bend], [this.n, !bend], [this.again, !bend]]) element.style.display = on ? "" : "none";
    const text = `After “${at.text.replaceAll("\n", " ↵ ")}”: the base (grey) and the same model fine-tuned (green)`;
    if (this.text.textContent !== text) this.text.textContent = text;
    if (bend) { this.drawBars(at.tokens); this.drawSums() } else this.drawClouds();
  }

  drawBars(tokens) {
    const { way, side } = this.state, plot = this.plot, p = this.pol, q = this.ref, n = tokens.length;
    const parts = p.map((v, i) => way === "reverse" ? part(v, q[i]) : part(q[i], v));
    const reach = 2 ** Math.ceil(Math.log2(Math.max(.25, ...parts.map((v) => Math.abs(Math.min(v, 8))))));
    plot.begin({ x: { min: 0, max: 1.7, hide: true }, y: { min: 0, max: n, hide: true }, height: n * ROW + 32 });
    plot.text("a", 0, n, "probability", { dy: -8 });
    plot.text("b", 1.7, n, "share of the KL, nats", { dy: -8, anchor: "end", role: "kl" });
    for (const [i, token] of tokens.entries()) {
      const y = plot.py(n - i - .5), x0 = plot.px(0), mid = plot.px(1.4), unit = (plot.px(1.7) - mid) / reach;
      plot.mark(`n${i}`, "text", plot.front, { class: "pt-label ink-ink", x: x0 - 8, y: y + 4, "text-anchor": "end" }).textContent = shown(token);
      plot.mark(`p${i}`, "rect", plot.inside, { class: "pt-bar pol", x: x0, y: y - 15, width: Math.max(1, plot.px(p[i]) - x0), height: 14 });
      plot.mark(`q${i}`, "rect", plot.inside, { class: "pt-bar rf", x: x0, y: y + 1, width: Math.max(1, plot.px(q[i]) - x0), height: 14 });
      const length = Math.max(-reach, Math.min(parts[i], reach)) * unit;
      plot.mark(`c${i}`, "rect", plot.inside, { class: `pt-bar ${length < 0 ? "quiet" : "kl"}`, x: Math.min(mid, mid + length), y: y - 9, width: Math.max(.5, Math.abs(length)), height: 18 });
      if (!Number.isFinite(parts[i])) plot.text(`i${i}`, 1.7, n - i - .5, "∞", { role: "kl", anchor: "end", dy: -12, bold: true });
      const mine = side === "pol" ? this.plain : this.ref;
      const knob = plot.handle(`h${i}`, { x: side === "pol" ? p[i] : q[i], y: n - i - .5 + (side === "pol" ? .17 : -.17), axis: "x", role: side, label: `${side === "pol" ? "Policy" : "Reference"}: ${shown(token)}`,
        min: 0, max: 1, step: .01, value: () => mine[i], text: (v) => v.toFixed(2), on: (v) => this.set({ [side === "pol" ? "p" : "q"]: bent(mine, i, v).map((x) => +x.toFixed(6)) }) });
      knob.firstChild.setAttribute("width", 44);
    }
    plot.mark("mid", "line", plot.inside, { class: "pt-rule quiet", x1: plot.px(1.4), x2: plot.px(1.4), y1: plot.py(n), y2: plot.py(0) });
    plot.end();
  }

  drawSums() {
    const { way } = this.state, p = this.pol, q = this.ref, plot = this.sums;
    const rows = [["H(π)", num.entropy(p), num.kl(p, q), "pol", "reverse"], ["H(ref)", num.entropy(q), num.kl(q, p), "rf", "forward"]];
    const reach = Math.max(1, ...rows.map(([, h, d]) => h + Math.min(d, 4))) * 1.08;
    plot.begin({ x: { min: 0, max: reach, label: "nats; the whole bar is the cross-entropy" }, y: { min: 0, max: 2, hide: true } });
    for (const [i, [name, h, d, role, key]] of rows.entries()) {
      const y = plot.py(1.5 - i), a = plot.px(0), b = plot.px(h), c = plot.px(Math.min(h + d, reach));
      plot.mark(`n${i}`, "text", plot.front, { class: "pt-label ink-ink", x: a - 8, y: y + 4, "text-anchor": "end" }).textContent = i ? "ref speaks" : "π speaks";
      plot.mark(`h${i}`, "rect", plot.inside, { class: `pt-bar ${role}`, x: a, y: y - 9, width: Math.max(0, b - a), height: 18 });
      plot.mark(`d${i}`, "rect", plot.inside, { class: "pt-bar kl", x: b, y: y - 9, width: Math.max(0, c - b), height: 18, opacity: key === way ? 1 : .45 });
      plot.text(`t${i}`, 0, 1.5 - i, `${name} ${said(h, 2)} + KL ${said(d, 2)} = ${said(h + d, 2)}`, { dy: -15, role: key === way ? "ink" : "quiet" });
    }
    plot.end();
  }

  drawClouds() {
    const { n, seed } = this.state, p = this.pol, q = this.ref, kl = num.kl(p, q), plot = this.cloud;
    const ratio = p.map((v, i) => v > 0 ? Math.log(v / q[i]) : 0), shift = seed * .6180339887;
    const edge = p.map((s => (v) => s += v)(0)), tables = ESTIMATORS.map((f) => ratio.map(f)), total = [0, 0, 0];
    const points = [[], [], []];
    for (let i = 0; i < CLOUD; i++) {
      total.fill(0);
      for (let j = 0; j < n; j++) {
        const u = (this.uniform[i * MOST + j] + shift) % 1;
        let k = 0;
        while (k < edge.length - 1 && (u >= edge[k] || p[k] === 0)) k++;
        for (let e = 0; e < 3; e++) total[e] += tables[e][k];
      }
      for (let e = 0; e < 3; e++) points[e].push(total[e] / n, 2.5 - e + .5 * (this.jitter[i] - .5));
    }
    this.found = tables.map((t) => num.moments(p, t));
    const one = Number.isFinite(kl) ? Math.max(.2, kl) : 4, reach = 2 ** Math.ceil(Math.log2(3.2 * one));
    for (const of of points) for (let i = 0; i < of.length; i += 2) of[i] = Math.max(-reach / 2, Math.min(reach, of[i]));
    plot.begin({ x: { min: -reach / 2, max: reach, label: "estimate of KL(π‖ref), nats" }, y: { min: 0, max: 3, hide: true } });
    plot.cloud(points.map((of, e) => ({ points: of, role: ["ink", "quiet", "kl"][e], size: 3.5, alpha: .45 })));
    plot.rule("truth", { x: Math.min(kl, reach), role: "pol", width: 2 });
    plot.text("truth", Math.min(kl, reach), 3, `KL ${said(kl)}`, { role: "pol", dx: 6, dy: 8, bold: true });
    for (const e of [0, 1, 2]) {
      const { mean, std } = this.found[e];
      plot.text(`n${e}`, -reach / 2, 2.5 - e, NAMES[e], { anchor: "end", dx: -8, role: "ink", bold: true });
      plot.dots(`m${e}`, Number.isFinite(mean) ? [{ x: Math.min(mean, reach), y: 2.5 - e, role: "bad", r: 6, shape: "up" }] : []);
      plot.text(`w${e}`, reach, 2.5 - e, `bias ${said(mean - kl)}, spread ${said(std / Math.sqrt(n))}`, { anchor: "end", dy: 36 });
    }
    plot.end();
  }

  words() {
    const { tab, way, tau, n } = this.state, p = this.pol, q = this.ref, reverse = num.kl(p, q), forward = num.kl(q, p);
    if (tab === "estimate") {
      const far = this.found.map(({ std }, e) => `${NAMES[e]} ${said(std / Math.sqrt(n), 2)}`).join(", ");
      return `${CLOUD} estimates from ${n} sample${n > 1 ? "s" : ""} each, of a KL of ${said(reverse)} nats. Spread: ${far}. ` +
        `k₂ is off by ${said(this.found[1].mean - reverse)} however many samples it gets; k₁ and k₃ are right on average.`;
    }
    const [d, first] = way === "reverse" ? [reverse, "policy"] : [forward, "reference"];
    const why = Number.isFinite(d) ? `is ${said(d)} nats` : "is infinite: it gives weight to a token that the other rules out";
    return `With the ${first} first, the KL ${why}; the other way round it is ${said(way === "reverse" ? forward : reverse)}. ` +
      `At temperature ${number(tau)} the policy’s entropy is ${said(num.entropy(p), 2)} nats, as if it chose among ${Math.exp(num.entropy(p)).toFixed(1)} equally likely tokens.`;
  }
}

const fits = (p) => Array.isArray(p) && p.length === 8;
const whole = (p) => [...p, Math.max(0, 1 - num.sum(p))];
const part = (a, b) => a > 0 ? a * Math.log(a / b) : 0;

define("bender", Bender);
