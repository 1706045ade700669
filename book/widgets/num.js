// The numbers of the widgets: pure functions, each equal to a function of the library to 1e-9, which
// tests/book/test_num.py sees to. Arrays are plain arrays; nothing here touches the page.

// Distributions -------------------------------------------------------------------------------------------------------

/** log Σ exp(x), without overflow. @param {number[]} x */
export function logsumexp(x) {
  const top = Math.max(...x);
  if (!Number.isFinite(top)) return top;
  let sum = 0;
  for (const v of x) sum += Math.exp(v - top);
  return top + Math.log(sum);
}

/** @param {number[]} x @returns {number[]} log-probabilities */
export function logSoftmax(x) { const z = logsumexp(x); return x.map((v) => v - z) }

/** @param {number[]} x logits @param {number} [temperature] @returns {number[]} probabilities */
export const softmax = (x, temperature = 1) => logSoftmax(x.map((v) => v / temperature)).map(Math.exp);

/** 1 / (1 + e^-x). @param {number} x */
export const sigmoid = (x) => x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));

/** log σ(x), exact where σ is 0 in floating point. @param {number} x */
export const logsigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));

/** Entropy of probabilities, in nats. @param {number[]} p */
export const entropy = (p) => -sum(p.map((v) => v > 0 ? v * Math.log(v) : 0));

/** KL(p ‖ q) of two distributions, in nats; infinite where q misses what p has. @param {number[]} p @param {number[]} q */
export const kl = (p, q) => sum(p.map((v, i) => v > 0 ? v * Math.log(v / q[i]) : 0));

/** Cross-entropy of q under p. @param {number[]} p @param {number[]} q */
export const crossEntropy = (p, q) => -sum(p.map((v, i) => v > 0 ? v * Math.log(q[i]) : 0));

/** The three estimators of KL from a log-ratio r = log π - log π_ref at a sample of π. @param {number} r */
export const k1 = (r) => r;
/** @param {number} r */
export const k2 = (r) => r * r / 2;
/** @param {number} r */
export const k3 = (r) => Math.expm1(-r) + r;

/** Mean and standard deviation of values under probabilities. @param {number[]} p @param {number[]} values */
export function moments(p, values) {
  const mean = sum(p.map((v, i) => v > 0 ? v * values[i] : 0));
  return { mean, std: Math.sqrt(sum(p.map((v, i) => v > 0 ? v * (values[i] - mean) ** 2 : 0))) };
}

/** A distribution over 1 ... n with one peak, ∝ exp(-((x - mean) / width)² / 2). @param {number} n @param {number} mean @param {number} width */
export const peak = (n, mean, width) => softmax(Array.from({ length: n }, (_, i) => -(((i + 1 - mean) / width) ** 2) / 2));

/** Slope of the KL of such a peak π in its mean and in the logarithm of its width.
 * @param {number[]} ref @param {number} mean @param {number} width @param {"reverse"|"forward"} way KL(π ‖ ref) or KL(ref ‖ π) */
export function peakGradient(ref, mean, width, way) {
  const pol = peak(ref.length, mean, width), z = pol.map((_, i) => (i + 1 - mean) / width);
  return [z.map((v) => v / width), z.map((v) => v * v)].map((score) => {
    const own = sum(pol.map((v, i) => v * score[i]));
    if (way === "forward") return own - sum(ref.map((v, i) => v * score[i]));
    return sum(pol.map((v, i) => v > 0 ? v * (score[i] - own) * Math.log(v / ref[i]) : 0));
  });
}

/** The policy that KL-regularised reward maximisation ends in: ∝ reference · exp(reward / β), as log-probabilities.
 * @param {number[]} refLogits @param {number[]} reward @param {number} beta */
export const tilted = (refLogits, reward, beta) => { const ref = logSoftmax(refLogits); return logSoftmax(ref.map((v, i) => v + reward[i] / beta)) };

/** What samples of the reference say of that policy: their weights, its expected reward, its KL from the reference, and how
 * many equally weighted samples would say as much.
 * @param {number[]} reward of the samples @param {number} beta @param {number[]} [count] how often each was sampled
 * @returns {{weight: number[], reward: number, kl: number, effective: number}} */
export function tiltedSamples(reward, beta, count) {
  const weight = new Array(reward.length);
  let top = -Infinity, total = 0, all = 0, square = 0, expected = 0, kl = 0;
  for (const r of reward) if (r > top) top = r;
  for (let i = 0; i < reward.length; i++) {
    const n = count ? count[i] : 1;
    total += weight[i] = n * Math.exp((reward[i] - top) / beta);
    all += n;
  }
  for (let i = 0; i < reward.length; i++) {
    const n = count ? count[i] : 1, w = weight[i] /= total;
    expected += w * reward[i];
    square += w * w / n;
    if (w > 0) kl += w * Math.log(w * all / n);
  }
  return { weight, reward: expected, kl, effective: 1 / square };
}

// Plain statistics ----------------------------------------------------------------------------------------------------

/** @param {number[]} x */
export function sum(x) { let s = 0; for (const v of x) s += v; return s }
/** @param {number[]} x */
export const mean = (x) => sum(x) / x.length;
/** Standard deviation; `less` 0 for the population's, 1 for the sample's. @param {number[]} x @param {number} [less] */
export const std = (x, less = 0) => { const m = mean(x); return Math.sqrt(sum(x.map((v) => (v - m) ** 2)) / (x.length - less)) };

// PPO -----------------------------------------------------------------------------------------------------------------

/**
 * What a token gains under PPO's clip, and the slope of that in the ratio.
 *     min(ρ A, clip(ρ, 1 - low, 1 + high) A), and at least cap · A where A < 0
 * @param {number} rho ratio @param {number} advantage
 * @param {{low: number, high: number, cap?: number|null}} clip edges 1 - low and 1 + high; cap: of the dual clip
 * @returns {{gain: number, slope: number}} slope 0: the token has no gradient
 */
export function clippedGain(rho, advantage, { low, high, cap = null }) {
  const free = rho * advantage, held = Math.min(Math.max(rho, Math.max(0, 1 - low)), 1 + high) * advantage;
  if (cap !== null && advantage < 0 && Math.min(free, held) < cap * advantage) return { gain: cap * advantage, slope: 0 };
  return held < free ? { gain: held, slope: 0 } : { gain: free, slope: advantage };
}

/** Where the clip acts on a token: "low", "high", "cap", or "" where the token has its gradient.
 * @param {number} rho @param {number} advantage @param {{low: number, high: number, cap?: number|null}} clip */
export function clippedAt(rho, advantage, { low, high, cap = null }) {
  if (cap !== null && advantage < 0 && rho > cap) return "cap";
  if (advantage < 0 && rho < Math.max(0, 1 - low)) return "low";
  return advantage > 0 && rho > 1 + high ? "high" : "";
}

/** Share of tokens without gradient. @param {number[]} rho @param {number[]} advantage @param {{low: number, high: number, cap?: number|null}} clip */
export const clipFraction = (rho, advantage, clip) => mean(rho.map((r, i) => clippedAt(r, advantage[i], clip) ? 1 : 0));

/** Log of the ratio of a whole answer per token, the mean of its tokens' log-ratios. @param {number[]} logRatios */
export const answerLogRatio = (logRatios) => mean(logRatios);

/** What a token gains under PPO's penalty, ρ A - β (ρ - 1 - log ρ), and its slope in the ratio.
 * @param {number} rho @param {number} advantage @param {number} beta */
export const penalisedGain = (rho, advantage, beta) => ({ gain: rho * advantage - beta * (rho - 1 - Math.log(rho)), slope: advantage - beta * (1 - 1 / rho) });

/** The next weight of that penalty: halved or doubled to hold a KL. @param {number} beta @param {number} measured @param {number} target */
export const doublingBeta = (beta, measured, target) => measured < target / 1.5 ? beta / 2 : measured > 1.5 * target ? 2 * beta : beta;

/** The next weight of RLHF's leash, steered towards a KL. @param {number} beta @param {number} measured
 * @param {{target: number, samples: number, horizon: number}} o */
export const adaptiveBeta = (beta, measured, { target, samples, horizon }) => beta * (1 + Math.min(Math.max(measured / target - 1, -.2), .2) * samples / horizon);

/**
 * Generalised advantage estimation: δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γλ A_{t+1}.
 * @param {number[]} rewards @param {number[]} values @param {{gamma?: number, lam?: number, last?: number}} [o] last: value after the end
 * @returns {{advantages: number[], targets: number[]}}
 */
export function gae(rewards, values, { gamma = 1, lam = .95, last = 0 } = {}) {
  const advantages = new Array(rewards.length);
  for (let t = rewards.length - 1, next = last, following = 0; t >= 0; t--) {
    following = rewards[t] + gamma * next - values[t] + gamma * lam * following;
    next = values[t];
    advantages[t] = following;
  }
  return { advantages, targets: advantages.map((a, t) => a + values[t]) };
}

// Preferences ---------------------------------------------------------------------------------------------------------

/** Bradley-Terry loss of a pair of scores, -log σ(chosen - rejected), and its slope in the difference.
 * @param {number} chosen @param {number} rejected */
export const bradleyTerry = (chosen, rejected) => ({ loss: -logsigmoid(chosen - rejected), slope: -sigmoid(rejected - chosen) });

/**
 * DPO of a pair from log-probabilities of whole answers: L = -(1 - ε) log σ(m) - ε log σ(-m), minimised, with m = β h.
 * @param {number} chosen @param {number} rejected @param {number} refChosen @param {number} refRejected @param {number} beta
 * @param {number} [flips] ε, the share of labels taken for flipped (cDPO); 0 is DPO
 * @returns {{loss: number, margin: number, rewardChosen: number, rewardRejected: number, weight: number}} weight: minus the
 *   slope of L in m; β times it is how hard log π(chosen) is pushed up, and log π(rejected) down
 */
export function dpo(chosen, rejected, refChosen, refRejected, beta, flips = 0) {
  const rewardChosen = beta * (chosen - refChosen), rewardRejected = beta * (rejected - refRejected), margin = rewardChosen - rewardRejected;
  const loss = flips ? -(1 - flips) * logsigmoid(margin) - flips * logsigmoid(-margin) : -logsigmoid(margin);
  return { loss, margin, rewardChosen, rewardRejected, weight: (1 - flips) * sigmoid(-margin) - flips * sigmoid(margin) };
}

// Randomness and steps ------------------------------------------------------------------------------------------------

/**
 * Uniform draw number `position` of a seed, in [0, 1): `posttrain.rng.uniform`, SplitMix64 in two halves of 32 bits.
 * @param {number} seed whole, not negative, below 2^53 @param {number} position whole, not negative
 */
export function uniform(seed, position) {
  let [h, l] = times(Math.floor((position + 1) / 4294967296) >>> 0, (position + 1) >>> 0, 0x9E3779B9, 0x7F4A7C15);
  const low = l + (seed >>> 0);
  h = (h + Math.floor(seed / 4294967296) + (low > 4294967295 ? 1 : 0)) >>> 0; l = low >>> 0;
  [h, l] = times(...shifted(h, l, 30), 0xBF58476D, 0x1CE4E5B9);
  [h, l] = times(...shifted(h, l, 27), 0x94D049BB, 0x133111EB);
  [h, l] = shifted(h, l, 31);
  return (h * 2097152 + (l >>> 11)) / 9007199254740992;
}
const shifted = (h, l, n) => n < 32 ? [(h ^ (h >>> n)) >>> 0, (l ^ ((l >>> n) | (h << (32 - n)))) >>> 0] : [h, (l ^ (h >>> (n - 32))) >>> 0];
function times(ah, al, bh, bl) {  // the low 64 bits of a product
  const a0 = al & 65535, a1 = al >>> 16, b0 = bl & 65535, b1 = bl >>> 16;
  const low = a0 * b0, mid = a1 * b0 + (low >>> 16), mid2 = a0 * b1 + (mid % 65536);
  const high = a1 * b1 + Math.floor(mid / 65536) + Math.floor(mid2 / 65536);
  return [(high + Math.imul(ah, bl) + Math.imul(al, bh)) >>> 0, (((mid2 & 65535) << 16) | (low & 65535)) >>> 0];
}

/** A stream of uniform draws of a seed. @param {number} seed @returns {() => number} */
export function random(seed) { let at = 0; return () => uniform(seed, at++) }

/** A standard normal draw from a stream. @param {() => number} next */
export const normal = (next) => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());

/** Index drawn from probabilities by one uniform number. @param {number[]} p @param {number} u */
export function pick(p, u) {
  let left = u * sum(p);
  for (let i = 0; i < p.length - 1; i++) { left -= p[i]; if (left < 0) return i }
  return p.length - 1;
}

/**
 * One step of Adam (AdamW without decay), down the gradient.
 * @param {number[]} x @param {number[]} gradient @param {{m: number[], v: number[], t: number}} state changed in place
 * @param {{lr: number, beta1?: number, beta2?: number, eps?: number}} o
 * @returns {number[]} the new x; begin with state {m: zeros, v: zeros, t: 0}
 */
export function adam(x, gradient, state, { lr, beta1 = .9, beta2 = .999, eps = 1e-8 }) {
  state.t++;
  const a = 1 - beta1 ** state.t, b = 1 - beta2 ** state.t;
  return x.map((value, i) => {
    state.m[i] = beta1 * state.m[i] + (1 - beta1) * gradient[i];
    state.v[i] = beta2 * state.v[i] + (1 - beta2) * gradient[i] ** 2;
    return value - lr * (state.m[i] / a) / (Math.sqrt(state.v[i] / b) + eps);
  });
}
