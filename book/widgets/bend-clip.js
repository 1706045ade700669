// Section 13: what a token gains over its ratio, 64 tokens of a real minibatch on the same axis, and their way over the
// passes. One state drives all three views; edges, point and cap are dragged in the drawing.
import { Widget, define, make } from "./kit/base.js";
import { Plot, number } from "./kit/plot.js";
import { button, choice, slider } from "./kit/controls.js";
import { strip } from "./kit/tokens.js";
import { answerLogRatio, clippedAt, clippedGain, mean, penalisedGain } from "./num.js";

/** Tabs: the rule's name, which recorded arm it replays, and the state that it starts in. */
const TABS = {
  clip: ["PPO's clip", "clip", { low: .2, high: .2 }],
  none: ["No clip", "none", {}],
  higher: ["Asymmetric", "higher", { low: .2, high: .5, adv: 1, rho: 1.35 }],
  dual: ["Dual clip", "dual", { low: .2, high: .2, cap: 3, adv: -1, rho: 3.4 }],
  penalty: ["KL penalty", "penalty", { beta: 1, adv: 1, rho: 1.35 }],
  sequence: ["Whole answers", "sequence", { low: .2, high: .2 }],
};
const FREE = 1e9;
const said = (text) => text === "<|endoftext|>" ? "⟨end⟩" : text;

class BendClip extends Widget {
  static defaults = { tab: "clip", rho: 1.35, adv: 1, low: .2, high: .2, cap: 3, beta: 1, epoch: 8, token: -1 };
  static presets = [["The paper's setting", {}], ["A mistake grows", { adv: -1, rho: 1.9 }], ["Break it", { tab: "none", rho: 2.2 }]];

  set(change) {
    const tab = change.tab;
    if (tab !== undefined && tab !== this.state.tab && !("low" in change)) change = { ...TABS[tab][2], ...change };
    if ("rho" in change || "adv" in change) change = { token: -1, ...change };
    super.set(change);
  }

  build() {
    choice(this, "tab", { label: "Rule", tabs: true, into: this.stage, options: Object.entries(TABS).map(([key, t]) => [key, t[0]]) });
    const left = make("div"), right = make("div");
    this.stage.append(make("div", { class: "pt-columns" }, left, right));
    left.append(make("p", { class: "pt-title", text: "What one token gains" }));
    this.fold = new Plot(left, { label: "Gain of one token over its ratio", height: 230, left: 40, right: 12 });
    this.counted = make("p", { class: "pt-title" });
    left.append(this.counted);
    this.dots = new Plot(left, { label: "Tokens by their ratio", height: 170, left: 40, right: 12, top: 8, bottom: 38 });
    right.append(make("p", { class: "pt-title", text: "The same tokens over eight passes" }));
    this.way = new Plot(right, { label: "Ratio of each token after each pass", height: 230, left: 44, right: 10 });
    this.texts = make("div", { class: "bend-answers" });
    right.append(make("p", { class: "pt-title", text: "The answers they are from" }), this.texts);
    this.read();
    choice(this, "adv", { label: "Advantage of the token", lock: true, options: [[1, "Â = +1"], [-1, "Â = −1"]] });
    slider(this, "epoch", { label: "Passes over the batch", min: 0, max: 8, step: 1, text: String });
    button(this, { label: () => this.stop ? "Stop" : "Replay", on: () => this.replay() });
    slider(this, "beta", { label: "Weight β of the penalty", min: .05, max: 20, log: true, role: "kl", more: true });
    slider(this, "cap", { label: "Cap c of the dual clip", min: 1.2, max: 4, step: .05, role: "bad", more: true });
  }

  /** Data as flat lists over the tokens; the answers as strips. */
  read() {
    this.answers = this.data.answers;
    this.tokens = [];
    this.strips = this.answers.map((a, k) => {
      const first = this.tokens.length;
      for (const [i, text] of a.tokens.entries()) this.tokens.push({ text: said(text), answer: k, adv: a.advantage[i], logp: a.logp[i] });
      this.texts.append(make("p", { class: "pt-note", text: `${a.prompt} ${a.reward > 0 ? "Right: reward 1" : "Wrong: reward 0"}` }));
      return [first, strip(this.texts, { label: `Answer to: ${a.prompt}`, on: (i) => this.choose(first + i) })];
    });
  }

  choose(i) { super.set({ token: i, rho: Math.min(this.rhos[i], this.top()), adv: this.tokens[i].adv > 0 ? 1 : -1 }) }

  top() { return this.state.tab === "dual" ? 4 : 2.5 }

  rule() {
    const { tab, low, high, cap } = this.state;
    if (tab === "none" || tab === "penalty") return { low: FREE, high: FREE, cap: null };
    return { low, high, cap: tab === "dual" ? cap : null };
  }

  /** Gain and slope of a token under the chosen rule. */
  gain(rho, adv) { return this.state.tab === "penalty" ? penalisedGain(rho, adv, this.state.beta) : clippedGain(rho, adv, this.rule()) }

  /** Ratios of all tokens after a pass, as the rule sees them. */
  ratios(epoch) {
    const logs = this.data.log_ratio[TABS[this.state.tab][1]][epoch];
    if (this.state.tab !== "sequence") return logs.map(Math.exp);
    return this.strips.flatMap(([first], k) => {
      const own = logs.slice(first, first + this.answers[k].tokens.length);
      return own.map(() => Math.exp(answerLogRatio(own)));
    });
  }

  replay() {
    if (this.stop) { this.stop(); this.stop = null; this.redraw(); return }
    this.stop = this.animate(4800, (share) => {
      const epoch = Math.round(share * 8);
      if (share === 1) this.stop = null;
      if (epoch !== this.state.epoch || share === 1) super.set({ epoch });
    });
  }

  draw() {
    const { adv, epoch, token } = this.state, rule = this.rule();
    this.rhos = this.ratios(epoch);
    if (token >= 0) this.state.rho = Math.min(this.rhos[token], this.top());
    this.at = this.tokens.map((t, i) => clippedAt(this.rhos[i], t.adv, rule));
    this.drawFold(adv, rule);
    this.drawDots(rule);
    this.drawWay(rule);
    for (const [first, shown] of this.strips) {
      const k = this.tokens[first].answer;
      shown.show(this.answers[k].tokens.map((text, i) => this.look(first + i, said(text))));
    }
  }

  look(i, text) {
    const held = this.at[i], rho = this.rhos[i];
    return { text, role: held ? "bad" : "pol", tint: Math.min(1, Math.abs(Math.log(rho))), mark: held ? "dotted" : Math.abs(rho - 1) > .02 ? "solid" : "",
      chosen: i === this.state.token, title: `ratio ${number(rho)}, advantage ${number(this.tokens[i].adv, 2)}${held ? ", no gradient" : ""}` };
  }

  drawFold(adv, rule) {
    const top = this.top(), { rho, tab } = this.state;
    const y = adv > 0 ? { min: -.25, max: top === 4 ? 2.5 : 2.2 } : { min: -top - .1, max: .35 };
    const p = this.fold.begin({ x: { min: 0, max: top, label: "ratio ρ = new probability / old" }, y: { ...y, label: "gain" } });
    const edged = rule.low < FREE, points = Array.from({ length: 161 }, (_, i) => .004 + i / 160 * (top - .004));
    if (edged) p.area("band", { x1: Math.max(0, 1 - rule.low), x2: 1 + rule.high });
    p.rule("one", { x: 1, role: "quiet", dash: "2 3" });
    p.line("free", [[0, 0], [top, top * adv]], { role: "quiet", width: 1, dash: "2 4" });
    const bends = [edged && (adv > 0 ? 1 + rule.high : Math.max(0, 1 - rule.low)), rule.cap !== null && adv < 0 && rule.cap].filter(Boolean);
    const xs = [...points, ...bends].sort((a, b) => a - b), flat = (x) => this.gain(x, adv).slope === 0;
    const inside = xs.filter((x) => !flat(x) || bends.includes(x)), value = (x) => [x, this.gain(x, adv).gain];
    p.line("slope", inside.map(value), { role: "pol" });
    if (edged) {
      const below = adv < 0, edge = below ? 1 - rule.low : 1 + rule.high;
      p.line("flat", (below ? [0, edge] : [edge, top]).map(value), { role: "bad" });
      if (rule.cap !== null && adv < 0) p.line("cap", [rule.cap, top].map(value), { role: "bad" });
    }
    const { gain, slope } = this.gain(rho, adv), reach = top / 9;
    p.line("tangent", [[rho - reach, gain - reach * slope], [rho + reach, gain + reach * slope]], { role: "ink", width: 1.5 });
    p.text("slope-text", rho, gain, slope === 0 ? "slope 0" : `slope ${slope > 0 ? "+" : ""}${number(slope, 2)}`,
      { role: slope === 0 ? "bad" : "ink", bold: true, anchor: rho > top * .6 ? "end" : "start", dx: rho > top * .6 ? -14 : 14, dy: adv > 0 && slope === 0 ? 24 : adv > 0 === slope > 0 && slope !== 0 ? 18 : -12 });
    p.handle("rho", { x: rho, y: gain, axis: "x", label: "Ratio of the token", min: .02, max: top, step: .02, text: (v) => `ratio ${number(v)}, slope ${number(slope, 2)}`, on: (v) => this.set({ rho: v }) });
    const grips = { shape: "grip", axis: "x", y: y.min, step: .01, snap: true };
    p.handle("low", { ...grips, x: edged ? Math.max(0, 1 - rule.low) : 0, label: "Lower edge, 1 − ε", min: 0, max: 1, text: number, from: (v) => v, on: (v) => this.set({ low: +(1 - v).toFixed(3), token: this.state.token }) });
    p.handle("high", { ...grips, x: edged ? 1 + rule.high : top, label: "Upper edge, 1 + ε", min: 1.01, max: top, text: number, on: (v) => this.set({ high: +(v - 1).toFixed(3), token: this.state.token }) });
    p.handle("capped", { ...grips, x: rule.cap ?? top, role: "bad", label: "Cap of the dual clip", min: 1.2, max: top, text: number, on: (v) => this.set({ cap: +v.toFixed(3) }) });
    if (!edged) { p.hide("low"); p.hide("high") }
    if (rule.cap === null || adv > 0) p.hide("capped");
    if (tab === "penalty") p.text("name", top, y.min, `ρ Â − β (ρ − 1 − log ρ), β = ${number(this.state.beta)}`, { role: "kl", anchor: "end", dy: -10 });
    p.end();
  }

  /** Tokens stacked at their ratio: above the middle those of positive advantage, below the others. */
  drawDots(rule) {
    const top = this.top(), p = this.dots.begin({ x: { min: 0, max: top, label: "ratio ρ; above the line Â > 0, below Â < 0" }, y: { min: -1, max: 1, hide: true } });
    if (rule.low < FREE) p.area("band", { x1: Math.max(0, 1 - rule.low), x2: 1 + rule.high });
    const columns = Math.max(20, Math.floor((p.width - 52) / 7)), wide = top / columns, piles = new Map(), dots = [];
    const order = this.tokens.map((_, i) => i).sort((a, b) => Math.abs(this.rhos[b] - 1) - Math.abs(this.rhos[a] - 1));
    for (const i of order) {  // where a column is full, a token stands in the next one
      const side = this.tokens[i].adv > 0 ? 1 : -1, own = Math.min(columns - 1, Math.floor(this.rhos[i] / wide));
      let bin = own;
      for (let k = 1; (piles.get(`${side} ${bin}`) || 0) >= 9 && k < 20; k++) bin = own + (k % 2 ? 1 : -1) * Math.ceil(k / 2);
      piles.set(`${side} ${bin}`, (piles.get(`${side} ${bin}`) || 0) + 1);
      dots[i] = { bin, side, n: piles.get(`${side} ${bin}`) };
    }
    const step = .105, r = 2.9;
    p.rule("middle", { y: 0, role: "quiet" });
    p.dots("t", dots.map((d, i) => ({ x: (d.bin + .5) * wide, y: d.side * (d.n - .35) * step, r: i === this.state.token ? r + 2 : r, role: this.at[i] ? "bad" : "pol", open: !!this.at[i], title: `${this.tokens[i].text.trim()}: ratio ${number(this.rhos[i])}` })));
    const held = this.at.filter(Boolean).length, said = `${this.at.length} tokens of a minibatch: ${held || "none"} without gradient`;
    if (this.counted.textContent !== said) this.counted.textContent = said;
    p.end();
  }

  drawWay(rule) {
    const low = .06, high = 4, tick = [.0625, .125, .25, .5, 1, 2, 4];
    const p = this.way.begin({ x: { min: 0, max: 8, ticks: [0, 2, 4, 6, 8], label: "passes over the batch" }, y: { min: low, max: high, log: true, ticks: tick, format: (v) => v < 1 ? `1/${Math.round(1 / v)}` : number(v), label: "ratio ρ" } });
    if (rule.low < FREE) p.area("band", { y1: Math.max(low, 1 - rule.low), y2: 1 + rule.high });
    const key = this.state.tab;
    if (this.waysOf !== key) { this.waysOf = key; const all = Array.from({ length: 9 }, (_, e) => this.ratios(e)); this.ways = this.tokens.map((_, i) => all.map((rhos, e) => [e, Math.min(high, Math.max(low, rhos[i]))])) }
    for (const [i, way] of this.ways.entries()) if (i !== this.state.token) p.line(`w${i}`, way, { role: this.at[i] ? "bad" : "pol", thin: true });
    p.rule("now", { x: this.state.epoch, role: "ink", dash: "3 3" });
    if (this.state.token >= 0) p.line("chosen", this.ways[this.state.token], { role: "ink", width: 2.5 });
    p.end();
  }

  words() {
    const { tab, adv, rho, epoch, low, high, token } = this.state, rule = this.rule(), { slope } = this.gain(rho, adv), where = clippedAt(rho, adv, rule);
    const who = token >= 0 ? `The token “${this.tokens[token].text.trim() || "↵"}”` : "A token";
    const point = tab === "penalty"
      ? `${who} of advantage ${adv > 0 ? "+" : "−"}1 at ratio ${number(rho)}: the penalty leaves it a slope of ${number(slope, 2)}${adv > 0 && slope < 0 ? ", which pulls it back" : ""}.`
      : where ? `${who} of advantage ${adv > 0 ? "+" : "−"}1 at ratio ${number(rho)} is beyond the ${where === "cap" ? "cap" : "edge"}: slope 0, it is pushed no further.`
      : adv < 0 && rho > 1 ? `${who} of advantage −1 at ratio ${number(rho)}: a mistake that has become likelier. The line never flattens on this side${tab === "dual" ? " before the cap" : ""}: slope −1.`
      : `${who} of advantage ${adv > 0 ? "+" : "−"}1 at ratio ${number(rho)} keeps its slope of ${number(slope, 2)}.`;
    const held = this.at.filter(Boolean).length, away = this.rhos.filter((r) => Math.abs(r - 1) > .2).length;
    const run = tab === "none" || tab === "penalty" ? `${away} of ${this.at.length} tokens ${away === 1 ? "lies" : "lie"} outside 0.8 to 1.2` : `${held} of ${this.at.length} tokens have no gradient, a clip fraction of ${Math.round(100 * held / this.at.length)} %`;
    const own = TABS[tab][2], bent = "low" in own && (own.low !== low || own.high !== high) ? " (by your edges; the run was made with its own)" : "";
    return `${point} After ${epoch === 1 ? "1 pass" : `${epoch} passes`} ${run}${bent}; mean distance |log ρ| ${number(mean(this.rhos.map((r) => Math.abs(Math.log(r)))), 2)}.`;
  }
}
define("bend-clip", BendClip);
