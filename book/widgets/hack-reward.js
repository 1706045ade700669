// Press on a proxy reward until the true one collapses. Recorded runs: first only the proxy is shown, and the reader stops
// the run where it seems best; then gold, what the answers looked like, and whether a rule of one's own would have known.
import { Widget, define, make } from "./kit/base.js";
import { button, choice, slider, toggle } from "./kit/controls.js";
import { panel } from "./kit/live.js";
import { Plot, number } from "./kit/plot.js";
import * as num from "./pressure.js";

const WAYS = { rl: "RL", kl: "RL, KL charged", min: "least of three", bon: "best-of-n" };
const CARDS = 3;
const percent = (x) => `${Math.round(100 * x)} %`.replace("-", "−");
const signed = (x, digits = 1) => (x > 0 ? "+" : "") + x.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
const ends = (lists) => { const all = lists.flat(), low = Math.min(...all), high = Math.max(...all), room = .06 * (high - low || 1); return [low - room, high + room] };

class HackReward extends Widget {
  static defaults = { way: "rl", seed: 1, at: 3, blind: true, law: false, rule: "polite > 2 * polite0" };
  static presets = [["Break it: press to the end", { at: Infinity, blind: false }], ["Charged for the KL", { way: "kl", at: Infinity, blind: false }]];

  set(change) {
    super.set(change);
    this.state.at = this.index();  // best-of-n has fewer points
  }

  build() {
    this.upper = new Plot(this.stage, { label: "The proxy over the distance from the start", height: 170, left: 46, right: 74, bottom: 22 });
    this.lower = new Plot(this.stage, { label: "Gold, the true reward, over the distance from the start", height: 230, left: 46, right: 74 });
    this.heading = make("p", { class: "pt-title", style: "margin-top: .8rem" });
    this.cards = make("div", {});
    const into = make("div", { class: "pt-controls", style: "margin-top: .6rem" });  // between what they move above and below
    this.stage.append(into, this.heading, this.cards, this.detector());
    choice(this, "way", { label: "Pressed by", into, options: Object.entries(WAYS) });
    slider(this, "at", { label: "Pressure", min: 0, max: this.data.rl[0].gold.length - 1, step: 1, into, role: "rew", text: () => this.place(this.index()) });
    button(this, { into, label: () => this.state.blind ? "Stop here, show gold" : "Hide gold, try again", on: () => this.set({ blind: !this.state.blind, ...(this.state.blind ? {} : { at: 0 }) }) });
    slider(this, "seed", { label: "Run", min: 0, max: this.data.rl.length - 1, step: 1, more: true, text: (v) => `seed ${this.data.seeds[v]}` });
    toggle(this, "law", { label: "Gao’s law, fitted to this run", more: true });
    this.more.append(panel({ experiment: "pressure",
      settings: () => ({ pressure: 5, beta: this.state.way === "kl" ? .01 : 0, steps: 40, seed: this.state.seed }),
      begin: () => { this.fresh = { distance: [], proxy: [], gold: [], answers: [] }; this.set({ way: "rl", blind: false, at: 0 }) },
      step: (event) => this.grow(event) }));
  }

  /** A step of the reader's own run: one more point of the same curves. */
  grow({ metrics, samples }) {
    if (!Number.isFinite(metrics.gold)) return;
    const run = this.fresh;
    run.distance.push(Math.sqrt(Math.max(0, metrics.kl))); run.proxy.push(metrics.reward_mean); run.gold.push(metrics.gold);
    run.answers.push(samples.slice(0, CARDS).map((s) => [s.task.split("-")[1], s.answer, null, s.reward]));
    this.set({ at: run.gold.length - 1 });
  }

  detector() {
    this.ruled = make("p", { class: "pt-note", style: "margin: .3rem 0 0" });
    const field = make("input", { type: "text", class: "pt-rule-text", spellcheck: "false", autocomplete: "off", style: "width: 100%; font: inherit; font-family: var(--mono, monospace); padding: .5rem; min-height: 44px; box-sizing: border-box; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 4px",
      oninput: () => this.set({ rule: field.value }) });
    this.bound.push(() => { if (field.value !== this.state.rule) field.value = this.state.rule });
    const label = make("label", { style: "display: block" }, make("span", { class: "pt-title", text: "A detector: stop the run as soon as …" }), field);
    this.box = make("div", { style: "margin-top: .9rem" }, label, this.ruled,
      make("p", { class: "pt-note", text: "It may read, per answer: proxy, distance, tokens, sentences, polite, facts, repeats; with a 0 at the end, as they were at the start. Not gold." }));
    return this.box;
  }

  runs() { return this.data[this.state.way] }
  run() { return this.fresh?.gold.length && this.watching() ? this.fresh : this.runs()[this.state.seed] }
  watching() { return this.state.way === "rl" && Boolean(this.fresh) }
  index() { return Math.max(0, Math.min(this.state.at, this.run().gold.length - 1)) }

  /** A point's name. */
  place(i) {
    if (this.state.way === "bon") return `best of ${this.data.counts[i]}`;
    return this.watching() ? `step ${i + 1}` : `step ${(i + 1) * this.data.steps}`;
  }

  draw() {
    const run = this.run(), i = this.index(), { blind } = this.state, far = Math.max(.5, run.distance.reduce((a, b) => Math.max(a, b), 0) * 1.03);
    const all = this.watching() ? [run] : this.runs(), width = this.width;
    const right = Math.max(far, ...all.map((r) => Math.max(...r.distance)));
    const [p1, p2] = ends(all.map((r) => r.proxy)), [g1, g2] = ends(all.map((r) => r.gold));
    const shown = blind ? i + 1 : run.proxy.length, path = (values, n) => values.slice(0, n).map((v, k) => [run.distance[k], v]);
    const up = this.upper.begin({ width, x: { min: 0, max: right }, y: { min: p1, max: p2, label: "proxy: what the run sees" } });
    if (!blind) for (const [s, r] of all.entries()) if (r !== run) up.line(`s${s}`, r.proxy.map((v, k) => [r.distance[k], v]), { role: "rew", thin: true });
    up.line("proxy", path(run.proxy, shown), { role: "rew" });
    if (!blind) up.text("name", run.distance.at(-1), run.proxy.at(-1), "proxy", { role: "rew", dx: 8, bold: true });
    up.handle("here", { x: run.distance[i], y: run.proxy[i], axis: "x", role: "rew", label: "Pressure, as a point of the run", value: () => i, min: 0, max: run.proxy.length - 1, step: 1, snap: true,
      from: (d) => nearest(run.distance, d), text: () => this.place(i), on: (v) => this.set({ at: Math.round(v) }) });
    up.end();
    const low = this.lower.begin({ width, x: { min: 0, max: right, label: "distance from the start, √KL" }, y: { min: g1, max: g2, label: "gold: what was wanted" } });
    if (blind) low.text("hidden", right / 2, (g1 + g2) / 2, "hidden until you stop", { anchor: "middle" });
    else this.drawGold(low, run, i, all);
    low.end();
    this.showAnswers(run, i);
    this.judge();
  }

  drawGold(plot, run, i, all) {
    for (const [s, r] of all.entries()) if (r !== run) plot.line(`s${s}`, r.gold.map((v, k) => [r.distance[k], v]), { role: "pol", thin: true });
    plot.line("gold", run.gold.map((v, k) => [run.distance[k], v]), { role: "pol" });
    const peak = num.peakOf(run.gold);
    plot.rule("peak", { x: run.distance[peak], dash: "4 4" });
    plot.text("top", run.distance[peak], plot.y.max, "peak", { anchor: "middle", dy: 10 });
    plot.text("name", run.distance.at(-1), run.gold.at(-1), "gold", { role: "pol", dx: 8, bold: true });
    if (this.state.law) {
      const { curve, share } = this.law(run);
      plot.line("law", curve, { role: "kl", width: 2 });
      plot.text("fit", plot.x.min, plot.y.min, `Gao’s law: ${percent(share)} of its spread`, { role: "kl", dx: 8, dy: -8, bold: true });
    }
    plot.dots("here", [{ x: run.distance[i], y: run.gold[i], role: "pol", r: 7 }]);
  }

  /** The law of this way of pressing, fitted to what gold gained. */
  law(run) {
    const bon = this.state.way === "bon", gained = run.gold.map((g) => g - run.gold[0]);
    const law = bon ? num.fitBestOfN(run.distance, gained) : num.fitRl(run.distance, gained), at = (d) => run.gold[0] + (bon ? num.goldBestOfN : num.goldRl)(d, law);
    const last = Math.max(...run.distance);
    return { curve: Array.from({ length: 61 }, (_, k) => [last * k / 60, at(last * k / 60)]), share: num.explained(run.gold, run.distance.map(at)) };
  }

  showAnswers(run, i) {
    const { blind } = this.state, key = `${blind} ${this.state.way} ${this.state.seed} ${i} ${this.watching()}`;
    if (this.shownKey === key) return;
    this.shownKey = key;
    this.heading.textContent = blind ? "What the model writes: shown when you have stopped" : `What the model writes: ${this.place(i)}`;
    this.cards.replaceChildren(...(blind ? [] : run.answers[i].slice(0, CARDS)).map(([person, text, gold, proxy]) => make("p", { class: "pt-note", style: "border-left: 3px solid var(--quiet, currentColor); padding-left: .7rem; margin: .5rem 0" },
      `${text || "(nothing)"} `, make("b", { style: "color: var(--rew)", text: `proxy ${signed(proxy, 2)}` }), gold === null ? ` of ${person}` : make("b", { style: "color: var(--pol)", text: `  gold ${signed(gold)}` }))));
  }

  /** The rule on every recorded run. It is computed again when it changes. */
  judge() {
    this.box.hidden = this.state.blind;
    if (this.judged === this.state.rule) return;
    this.judged = this.state.rule;
    let test;
    try { test = num.rule(this.state.rule) } catch (error) { this.verdict = null; this.ruled.textContent = `It cannot be read: ${error.message}.`; return }
    const told = Object.keys(WAYS).map((way) => [way, this.data[way].map((run) => num.detect(run, test))]);
    this.verdict = Object.fromEntries(told);
    const all = told.flatMap(([, found]) => found), mean = (list, f) => list.reduce((s, v) => s + f(v), 0) / list.length;
    const each = told.map(([way, found]) => `${WAYS[way]}: ${found.filter((f) => f.inTime).length} of ${found.length} in time, ${percent(mean(found, (f) => f.kept))} kept`);
    const never = Object.keys(WAYS).flatMap((way) => this.data[way].map((run) => num.kept(run.gold, run.gold.length - 1)));
    this.ruled.textContent = `It fires before gold’s peak has passed in ${all.filter((f) => f.inTime).length} of ${all.length} runs, and keeps ${percent(mean(all, (f) => f.kept))} of the gain on average (never stopping: ${percent(mean(never, (v) => v))}). ${each.join(" · ")}.`;
  }

  words() {
    const run = this.run(), i = this.index(), { blind, way } = this.state, where = `${this.watching() ? "Your run" : WAYS[way]}, ${this.place(i)}: distance ${number(run.distance[i], 2)}, proxy ${signed(run.proxy[i], 2)}`;
    if (blind) return `${where}. Gold is hidden: press on while it seems worth it, then stop.`;
    const peak = num.peakOf(run.gold), share = num.kept(run.gold, i), end = num.kept(run.gold, run.gold.length - 1);
    const side = i === peak ? "This is gold’s peak" : i < peak ? `Gold’s peak is still ahead, at ${this.place(peak)}` : `Gold’s peak has passed, at ${this.place(peak)}`;
    return `${where}, gold ${signed(run.gold[i], 2)}. ${side}. A stop here keeps ${percent(share)} of the gain that was to be had; the end keeps ${percent(end)}.`;
  }
}

/** The point whose distance is nearest. */
function nearest(distance, d) {
  let best = 0;
  for (const [i, v] of distance.entries()) if (Math.abs(v - d) < Math.abs(distance[best] - d)) best = i;
  return best;
}

define("hack-reward", HackReward);
