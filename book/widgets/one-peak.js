// A reference with two habits, short answers and long ones, and a policy with room for one: its mean and its width are
// dragged, or fitted by the gradient of the KL in either direction. Below: what each length adds to that KL.
import { Widget, define, make } from "./kit/base.js";
import { button, choice, slider } from "./kit/controls.js";
import { Plot } from "./kit/plot.js";
import * as num from "./num.js";

const LENGTHS = 48, SHORT = 12, STEPS = 300;
const NARROW = 1.5, WIDE = 20;
const said = (x) => x.toFixed(2).replace("-", "−");

/** Lengths of the reference's answers: 55 % about 12 tokens, the others `gap` longer. @param {number} gap @returns {number[]} */
function habits(gap) {
  const short = num.peak(LENGTHS, SHORT, 2.5), long = num.peak(LENGTHS, SHORT + gap, 3.5);
  return short.map((v, i) => .55 * v + .45 * long[i]);
}

/** Mean and width at every step down the gradient of the KL.
 * @param {number[]} ref @param {number} mean @param {number} width @param {"reverse"|"forward"} way @returns {Array<[number, number]>} */
function descent(ref, mean, width, way) {
  const state = { m: [0, 0], v: [0, 0], t: 0 }, path = [[mean, width]];
  let at = [mean / 10, Math.log(width)];
  for (let step = 0; step < STEPS; step++) {
    const [dMean, dLog] = num.peakGradient(ref, at[0] * 10, Math.exp(at[1]), way);
    at = num.adam(at, [10 * dMean, dLog], state, { lr: .06 * (1 - step / STEPS), beta2: .9 });
    at = [Math.min(LENGTHS / 10, Math.max(.1, at[0])), Math.min(Math.log(WIDE), Math.max(Math.log(NARROW), at[1]))];
    path.push([at[0] * 10, Math.exp(at[1])]);
  }
  return path;
}

class OnePeak extends Widget {
  static defaults = { mean: 20, width: 4, gap: 22, way: "reverse" };
  static presets = [
    ["Break it: nothing in common", { mean: 47, width: 1.5, way: "forward" }],
    ["Habits that overlap", { gap: 8, mean: 17, width: 4 }],
  ];

  build() {
    this.place = make("div", {});
    this.stage.append(this.place);
    this.plot = new Plot(this.place, { label: "Lengths of the reference's answers and of the policy's", left: 46, right: 14, top: 26, bottom: 22, height: 210 });
    this.parts = new Plot(this.place, { label: "What each length adds to the KL", left: 46, right: 14, top: 22, bottom: 40, height: 150 });
    choice(this, "way", { label: "Direction of KL", options: [["reverse", "KL(π‖ref)"], ["forward", "KL(ref‖π)"]] });
    button(this, { label: "Fit the policy by it", on: () => this.fit() });
    slider(this, "gap", { label: "Tokens between the habits", min: 0, max: 30, step: 1, role: "rf" });
  }

  fit() {
    this.stop?.();
    const path = descent(this.ref, this.state.mean, this.state.width, this.state.way);
    this.stop = this.animate(1600, (share) => {
      const [mean, width] = path[Math.round(share * STEPS)];
      this.set({ mean: +mean.toFixed(3), width: +width.toFixed(3) });
    });
  }

  draw() {
    const { mean, width, gap, way } = this.state;
    this.ref = habits(gap);
    this.pol = num.peak(LENGTHS, mean, width);
    const [p, q] = way === "reverse" ? [this.pol, this.ref] : [this.ref, this.pol];
    const parts = p.map((v, i) => v > 0 ? v * Math.log(v / q[i]) : 0), top = Math.max(.16, ...this.pol) * 1.06;
    const x = { min: .5, max: LENGTHS + .5, ticks: [1, 12, 24, 36, 48] };
    this.drawPeaks(x, top);
    const reach = 2 ** Math.ceil(Math.log2(Math.max(.25, ...parts.map(Math.abs))));
    const low = Math.min(-reach / 8, 2 * Math.min(...parts));
    this.parts.begin({ x: { ...x, label: "length of the answer, tokens" }, y: { min: Math.max(-reach, low), max: reach, label: "share of the KL, nats" } });
    this.parts.bars("c", parts.map((y, i) => ({ x: i + 1, y, role: y < 0 ? "quiet" : "kl" })), { width: .8, base: 0 });
    this.parts.end();
  }

  drawPeaks(x, top) {
    const { mean, width } = this.state, plot = this.plot;
    plot.begin({ x, y: { min: 0, max: top, label: "probability" } });
    plot.bars("p", this.ref.map((y, i) => ({ x: i + 1, y })), { role: "rf", width: .8 });
    plot.line("q", this.pol.map((y, i) => [i + 1, y]), { role: "pol" });
    const height = Math.max(...this.pol), half = height * Math.exp(-.5), right = mean + width < LENGTHS;
    plot.handle("mean", { x: mean, y: height, axis: "x", role: "pol", label: "Mean length of the policy", min: 1, max: LENGTHS, step: .5,
      text: (v) => `${v.toFixed(1)} tokens`, on: (v) => this.take({ mean: v }) });
    plot.handle("width", { x: right ? mean + width : mean - width, y: half, axis: "x", role: "pol", shape: "grip", label: "Width of the policy", min: NARROW, max: WIDE, step: .25,
      from: (v) => Math.abs(v - mean), value: () => width, text: (v) => `${v.toFixed(1)} tokens`, on: (v) => this.take({ width: v }) });
    plot.end();
  }

  take(change) {
    this.stop?.();
    this.set(change);
  }

  words() {
    const { mean, width, way } = this.state, at = Math.min(LENGTHS, Math.max(1, Math.round(mean)));
    const reverse = num.kl(this.pol, this.ref), forward = num.kl(this.ref, this.pol);
    const often = Math.round(100 * this.ref[at - 1]);
    return `A policy about ${mean.toFixed(1)} tokens long, give or take ${width.toFixed(1)}: KL(π‖ref) ${said(reverse)} and KL(ref‖π) ${said(forward)} nats, ` +
      `of which the ${way === "reverse" ? "first" : "second"} is drawn. Its favourite length, ${at}, is ${often < 1 ? "hardly ever" : `in ${often} of 100 answers`} that of the reference.`;
  }
}

define("one-peak", OnePeak);
