// GRPO on the task of adder.js: what the worker runs, and tests run without one.
import { ANSWERS, END, MOST, asked, problem, verdict } from "./adder.js";
import { advantages, tokenWeights } from "./group.js";
import { adamw, gradient } from "./grpo.js";
import { sample } from "./lm.js";
import { random, uniform } from "./num.js";

/** A model under training: sampling of groups, steps, undo. */
export class Trainer {
  /** @param {import("./lm.js").Model} model with `keep` and ANSWERS slots @param {number} lr */
  constructor(model, lr = 3e-4) {
    Object.assign(this, { model, lr, state: { t: 0 }, past: [] });
  }

  /**
   * Samples answers, token by token. @param {string[]} problems one per answer @param {number} temperature @param {number} seed
   * @yields {{slot: number, token: number, logp: number, done: boolean}[]}
   * @returns {{prompt: number[], tokens: number[], reward: number}[]}
   */
  *answers(problems, temperature, seed) {
    const said = problems.map((digits) => ({ digits, prompt: asked(digits), tokens: [] }));
    const how = { temperature, most: MOST, stop: [END], random: random(seed) };
    for (const new_ of sample(this.model, said.map((s) => s.prompt), how)) {
      for (const n of new_) said[n.slot].tokens.push(n.token);
      yield new_;
    }
    for (const s of said) s.reward = verdict(s.digits, s.tokens);
    return said;
  }

  /** All of `answers` at once. */
  sampled(problems, temperature, seed) {
    const going = this.answers(problems, temperature, seed);
    for (;;) { const { value, done } = going.next(); if (done) return value }
  }

  /**
   * One step of GRPO on ANSWERS answers in groups of `size`; the first group answers `digits`.
   * @param {string} digits
   * @param {{size: number, temperature: number, normalise: "std"|"none", average: "answer"|"token"|"constant"}} o
   * @param {number} seed
   * @returns {{loss: number, norm: number, reward: number, dead: number}} reward: mean; dead: share of groups of equal rewards
   */
  step(digits, o, seed) {
    const groups = Math.floor(ANSWERS / o.size);
    const problems = Array.from({ length: groups }, (_, g) => g ? problem(uniform(seed + 1, g)) : digits);
    const said = this.sampled(problems.flatMap((p) => new Array(o.size).fill(p)), o.temperature, seed);
    const weights = tokenWeights(said.map((s) => s.tokens.length), o.average, MOST);
    let dead = 0;
    for (let g = 0; g < groups; g++) {
      const group = said.slice(g * o.size, (g + 1) * o.size), a = advantages(group.map((s) => s.reward), o.normalise);
      for (const [i, s] of group.entries()) s.advantage = a[i];
      dead += a.every((x) => x === 0);
    }
    this.keep();
    const loss = gradient(this.model, said.map((s, i) => ({ ...s, weight: weights[i] })), o.temperature);
    const norm = adamw(this.model, this.state, { lr: this.lr * Math.min(1, (this.state.t + 1) / 5) });
    return { loss, norm, reward: said.reduce((r, s) => r + s.reward, 0) / said.length, dead: dead / groups };
  }

  /** Remembers weights and AdamW's means, of the last forty steps. */
  keep() {
    const { f, parameters, m } = this.model;
    this.past.push({ weights: f.slice(0, parameters), means: f.slice(m, m + 2 * parameters), t: this.state.t });
    if (this.past.length > 40) this.past.shift();
  }

  /** Back by some steps, as far as they are remembered. @param {number} steps @returns {number} how many */
  undo(steps = 1) {
    let done = 0, back = null;
    while (done < steps && this.past.length) { back = this.past.pop(); done++ }
    if (back) {
      this.model.f.set(back.weights, 0);
      this.model.f.set(back.means, this.model.m);
      this.state.t = back.t;
      this.model.refresh();
    }
    return done;
  }
}
