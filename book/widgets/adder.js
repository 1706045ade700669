// The task of section 23, sums of four digits, and GRPO on it: what the worker runs, and tests run without one.
import { adamw, advantages, gradient, tokenWeights } from "./grpo.js";
import { sample } from "./lm.js";
import { random, uniform } from "./num.js";

export const MOST = 20;   // tokens of an answer, its end included
export const ANSWERS = 64; // of one training step, in groups of G
const VOCABULARY = ["<pad>", "<end>", ..."0123456789", "+", "=", ",", ";"], END = 1;

/** Ids of "4+9+7+5=". @param {string} digits such as "4975" */
export const asked = (digits) => [...[...digits].join("+"), "="].map((c) => VOCABULARY.indexOf(c));

/** Text of ids; the end of an answer is not shown. @param {number[]} tokens */
export const text = (tokens) => tokens.filter((t) => t !== END).map((t) => VOCABULARY[t]).join("");

/** A problem drawn from one uniform number. @param {number} u */
export const problem = (u) => [729, 81, 9, 1].map((p) => 1 + Math.floor(u * 6561 / p) % 9).join("");

/** The verifier: 1 if the answer ended and its last number is the sum, else 0. @param {string} digits @param {number[]} tokens */
export function verdict(digits, tokens) {
  const right = [...digits].reduce((a, b) => a + +b, 0), said = text(tokens).split(",").at(-1);
  return tokens.at(-1) === END && said === String(right) ? 1 : 0;
}

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
