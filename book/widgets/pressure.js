// Numbers of section 15: the laws of over-optimisation and their fits, how far best-of-n moves, the score of a stop, and
// the reader's rule that says when to stop. Everything but the rule is the library's; tests/book compares it.

/** Gold of best-of-n at distance d = √kl. @param {number} d @param {{alpha: number, beta: number}} law */
export const goldBestOfN = (d, law) => d * (law.alpha - law.beta * d);

/** Gold of RL at distance d. @param {number} d @param {{alpha: number, beta: number}} law */
export const goldRl = (d, law) => law.alpha * d - (d > 0 ? law.beta * d * Math.log(d) : 0);

/** Least squares of y on two columns; null where the points do not tell them apart. */
function twoTerms(first, second, y) {
  let a = 0, b = 0, c = 0, u = 0, v = 0;
  for (let i = 0; i < y.length; i++) {
    a += first[i] * first[i]; b += first[i] * second[i]; c += second[i] * second[i];
    u += first[i] * y[i]; v += second[i] * y[i];
  }
  const determinant = a * c - b * b;
  return determinant > 1e-12 * a * c ? { alpha: (c * u - b * v) / determinant, beta: (a * v - b * u) / determinant } : null;
}

/** α and β of `goldBestOfN`. @param {number[]} distance @param {number[]} gold 0 at the start */
export const fitBestOfN = (distance, gold) => twoTerms(distance, distance.map((d) => -d * d), gold);

/** α and β of `goldRl`. @param {number[]} distance @param {number[]} gold 0 at the start */
export const fitRl = (distance, gold) => twoTerms(distance, distance.map((d) => d > 0 ? -d * Math.log(d) : 0), gold);

/** Where `goldBestOfN` is highest; null if it never falls. */
export const peakBestOfN = (law) => law.beta > 0 ? { distance: law.alpha / (2 * law.beta), gold: law.alpha ** 2 / (4 * law.beta) } : null;

/** Where `goldRl` is highest; null if it never falls. */
export function peakRl(law) {
  if (!(law.beta > 0)) return null;
  const distance = Math.exp(law.alpha / law.beta - 1);
  return { distance, gold: law.beta * distance };
}

/** The bound on the KL of best-of-n, in nats. @param {number} n */
export const bestOfNBound = (n) => Math.log(n) - (n - 1) / n;

/** Share of the spread of y that a curve explains: 1 all of it, 0 no more than the mean does, below 0 less than that. */
export function explained(y, curve) {
  const middle = y.reduce((s, v) => s + v, 0) / y.length;
  return 1 - y.reduce((s, v, i) => s + (v - curve[i]) ** 2, 0) / y.reduce((s, v) => s + (v - middle) ** 2, 0);
}

/** Where gold is highest. @param {number[]} gold */
export const peakOf = (gold) => gold.indexOf(Math.max(...gold));

/** Which share of the gain that was to be had a stop keeps; 1 at the peak, negative below the start. @param {number[]} gold @param {number} at */
export function kept(gold, at) {
  const most = gold[peakOf(gold)] - gold[0];
  return most > 0 ? (gold[at] - gold[0]) / most : 1;
}

const WORDS = ["proxy", "distance", "tokens", "sentences", "polite", "facts", "repeats"];

/**
 * A rule such as `polite > 2 and tokens > 1.5 * tokens0`, read into a function of (values, values at the start). Names are
 * those of WORDS, with a 0 for the value at the start; + - * / ( ), comparisons, and, or, not. Throws what is wrong with it.
 * @param {string} text
 * @returns {(now: Object<string, number>, first: Object<string, number>) => boolean}
 */
export function rule(text) {
  const parts = text.match(/\d+(?:\.\d+)?|\.\d+|[a-z]+0?|<=|>=|[<>()+\-*/]|\S/g) || [];
  let at = 0;
  const next = (...wanted) => wanted.includes(parts[at]) ? parts[at++] : null;
  const OPS = { "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b,
    "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b };
  const chain = (below, ...ops) => () => {
    let left = below();
    for (let op; (op = next(...ops));) { const a = left, b = below(), f = OPS[op]; left = (n, s) => f(a(n, s), b(n, s)) }
    return left;
  };
  const atom = () => {
    const part = parts[at++];
    if (part === undefined) throw new Error("it ends too early");
    if (part === "-") { const a = atom(); return (n, s) => -a(n, s) }
    if (part === "(") { const inner = either(); if (!next(")")) throw new Error("a bracket is not closed"); return inner }
    if (/^[\d.]/.test(part)) return () => +part;
    const name = part.replace(/0$/, "");
    if (!WORDS.includes(name)) throw new Error(`“${part}” is not one of ${WORDS.join(", ")}`);
    return part === name ? (n) => n[name] : (n, s) => s[name];
  };
  const sum = chain(chain(atom, "*", "/"), "+", "-");
  const comparison = () => {
    if (next("not")) { const a = comparison(); return (n, s) => !a(n, s) }
    const left = sum(), op = next("<", ">", "<=", ">=");
    if (!op) return left;
    const right = sum(), f = OPS[op];
    return (n, s) => f(left(n, s), right(n, s));
  };
  const both = () => { let left = comparison(); while (next("and")) { const a = left, b = comparison(); left = (n, s) => a(n, s) && b(n, s) } return left };
  const either = () => { let left = both(); while (next("or")) { const a = left, b = both(); left = (n, s) => a(n, s) || b(n, s) } return left };
  const found = either();
  if (at < parts.length) throw new Error(`“${parts[at]}” is not expected there`);
  return (now, first) => Boolean(found(now, first));
}

/** What a rule may see of a run at a point. @param {Object} run @param {number} i */
export function seen(run, i) {
  const found = { proxy: run.proxy[i], distance: run.distance[i] };
  for (const name in run.traits) found[name] = run.traits[name][i];
  return found;
}

/**
 * When a rule first fires in a run, and what that stop is worth.
 * @returns {{at: number, peak: number, fired: boolean, inTime: boolean, kept: number}} at: the last point if it never fires
 */
export function detect(run, test) {
  const n = run.gold.length, first = seen(run, 0), peak = peakOf(run.gold);
  let at = 0;
  while (at < n && !test(seen(run, at), first)) at++;
  const fired = at < n, stop = Math.min(at, n - 1);
  return { at: stop, peak, fired, inTime: fired && stop <= peak, kept: kept(run.gold, stop) };
}
