// One step of GRPO on a model of lm.js: the backward pass written out, and AdamW. The samples are the model's own and used
// once, so that every ratio is 1: the gradient is that of -Σ w A log π, with A and w from group.js.

/**
 * The gradient of one step, into the model's gradients; returns the loss.
 * @param {import("./lm.js").Model} model with `keep`
 * @param {{prompt: number[], tokens: number[], advantage: number, weight: number}[]} answers
 * @param {number} temperature that they were sampled at
 */
export function gradient(model, answers, temperature = 1) {
  const { f, V, D } = model, tokens = [], slot = [], place = [], want = [], push = [];
  let loss = 0;
  for (const [i, a] of answers.entries()) {
    const whole = [...a.prompt, ...a.tokens];
    for (let t = 0; t + 1 < whole.length; t++) {
      const learned = t + 1 >= a.prompt.length;
      tokens.push(whole[t]); slot.push(i); place.push(t); want.push(learned ? whole[t + 1] : -1);
      push.push(learned ? a.weight * a.advantage : 0);
      if (learned) loss -= a.weight * a.advantage;
    }
  }
  const rows = tokens.length;
  model.forward(tokens, slot, place);
  model.product(model.hidden, D, 1, model.top.head, V, model.logits, V, rows, V, D);
  for (let r = 0; r < rows; r++) {  // of -w A log π: w A (π - 1 at the token) / temperature
    const row = f.subarray(model.logits + r * V, model.logits + (r + 1) * V);
    if (!push[r]) { row.fill(0); continue }
    let top = -Infinity, total = 0;
    for (const x of row) if (x > top) top = x;
    for (let v = 0; v < V; v++) total += row[v] = Math.exp((row[v] - top) / temperature);
    for (let v = 0; v < V; v++) row[v] = push[r] / temperature * (row[v] / total - (v === want[r] ? 1 : 0));
  }
  backward(model, tokens, slot, place);
  return loss;
}

/** From gradients of the logits, in `model.logits`, to those of all parameters. */
function backward(model, tokens, slot, place) {
  const { f, D, F, V, H, d, Q, back, product } = model, rows = tokens.length, g = model.grad;
  f.fill(0, g, g + model.parameters);
  product(model.logits, 1, V, model.hidden, D, g + model.top.embed, D, V, D, rows);
  product(model.logits, V, 1, model.top.embed, D, back.mid, D, rows, D, V);
  f.fill(0, back.x, back.x + rows * D);
  normBack(model, model.last, model.top.norm, back.mid, back.x, rows);
  for (const w of [...model.layers].reverse()) {
    const k = w.kept;
    product(back.x, 1, D, k.act, F, g + w.down, F, D, F, rows);
    product(back.x, D, 1, w.down, F, back.mid, F, rows, F, D);
    for (let r = 0; r < rows; r++) for (let j = 0, a = k.gu + r * 2 * F, o = back.wide + r * 2 * F; j < F; j++) {
      const x = f[a + j], s = 1 / (1 + Math.exp(-x)), y = f[back.mid + r * F + j];
      f[o + j] = y * f[a + F + j] * s * (1 + x * (1 - s)); f[o + F + j] = y * x * s;
    }
    product(back.wide, 1, 2 * F, k.n2, D, g + w.gu, D, 2 * F, D, rows);
    product(back.wide, 2 * F, 1, w.gu, D, back.mid, D, rows, D, 2 * F);
    normBack(model, k.mid, w.norm2, back.mid, back.x, rows);
    product(back.x, 1, D, k.mix, H * d, g + w.out, H * d, D, H * d, rows);
    product(back.x, D, 1, w.out, H * d, back.mid, H * d, rows, H * d, D);
    attentionBack(model, w, slot, place, rows);
    product(back.wide, 1, Q, k.n1, D, g + w.qkv, D, Q, D, rows);
    product(back.wide, Q, 1, w.qkv, D, back.mid, D, rows, D, Q);
    normBack(model, k.x, w.norm1, back.mid, back.x, rows);
  }
  for (let r = 0; r < rows; r++) for (let j = 0; j < D; j++) f[g + model.top.embed + tokens[r] * D + j] += f[back.x + r * D + j];
}

/** RMSNorm: adds to the gradient of its input (`into`) and of its weight. */
function normBack(model, input, weight, from, into, rows) {
  const { f, D, eps, grad } = model;
  for (let r = 0; r < rows; r++) {
    const x = input + r * D, y = from + r * D, o = into + r * D;
    let square = 0, along = 0;
    for (let i = 0; i < D; i++) square += f[x + i] ** 2;
    const scale = 1 / Math.sqrt(square / D + eps);
    for (let i = 0; i < D; i++) along += f[y + i] * f[weight + i] * f[x + i] * scale;
    for (let i = 0; i < D; i++) {
      const unit = f[x + i] * scale;
      f[grad + weight + i] += f[y + i] * unit;
      f[o + i] += (f[y + i] * f[weight + i] - unit * along / D) * scale;
    }
  }
}

/** From the mixed values' gradients in back.mid to those of queries, keys and values before rotation, in back.wide. */
function attentionBack(model, w, slot, place, rows) {
  const { f, H, K, d, Q, length, slots, back } = model, { qkv, p } = w.kept, scale = d ** -.5, share = H / K;
  const row = new Map();                                               // of a token, by its slot and place
  for (let r = 0; r < rows; r++) row.set(slot[r] * length + place[r], r);
  const score = new Float64Array(length);
  f.fill(0, back.wide, back.wide + rows * Q);
  for (let r = 0; r < rows; r++) for (let h = 0; h < H; h++) {
    const shared = Math.floor(h / share), out = back.mid + (r * H + h) * d, probs = p + (r * H + h) * length, n = place[r] + 1;
    const values = w.cache + ((slots + slot[r]) * K + shared) * length * d;
    let mean = 0;
    for (let t = 0; t < n; t++) {
      let s = 0;
      for (let i = 0, v = values + t * d; i < d; i++) s += f[out + i] * f[v + i];
      score[t] = s; mean += s * f[probs + t];
    }
    const q = qkv + r * Q + h * d, dq = back.wide + r * Q + h * d;
    for (let t = 0; t < n; t++) {
      const other = row.get(slot[r] * length + t) * Q, key = qkv + other + (H + shared) * d;
      const dk = back.wide + other + (H + shared) * d, dv = dk + K * d, a = f[probs + t], s = a * (score[t] - mean) * scale;
      for (let i = 0; i < d; i++) { f[dv + i] += a * f[out + i]; f[dq + i] += s * f[key + i]; f[dk + i] += s * f[q + i] }
    }
  }
  for (let r = 0; r < rows; r++) for (let h = 0; h < H + K; h++) model.rotate(back.wide + r * Q + h * d, place[r], -1);
}

/**
 * One step of AdamW on the gradients, scaled down to a global norm as the library does. @param {import("./lm.js").Model} model
 * @param {{t: number}} state counts steps @param {{lr: number, beta1?: number, beta2?: number, eps?: number, most?: number}} o
 * @returns {number} the gradient's norm
 */
export function adamw(model, state, { lr, beta1 = .9, beta2 = .95, eps = 1e-8, most = 1 }) {
  const { f, grad, m, v, parameters } = model;
  let norm = 0;
  for (let i = 0; i < parameters; i++) norm += f[grad + i] ** 2;
  norm = Math.sqrt(norm);
  const scale = norm > most ? most / (norm + 1e-6) : 1;
  state.t++;
  const a = 1 - beta1 ** state.t, b = 1 - beta2 ** state.t;
  for (let i = 0; i < parameters; i++) {
    const x = f[grad + i] * scale;
    f[m + i] = beta1 * f[m + i] + (1 - beta1) * x;
    f[v + i] = beta2 * f[v + i] + (1 - beta2) * x * x;
    f[i] -= lr * (f[m + i] / a) / (Math.sqrt(f[v + i] / b) + eps);
  }
  model.refresh();
  return norm;
}
