// The decoder of the Llama and Qwen3 families, as the library computes it (posttrain/models/decoder.py), for pages: it reads
// a model folder's own fp16 safetensors, samples with a cache, and keeps what a backward pass needs (grpo.js). Rows are
// (token, slot, place); a row sees what stands in its slot's cache up to its own place, so that prompts, single new tokens
// and whole answers for training are one function. Everything lies in one block of memory, which kernel.js multiplies in.
import { workspace } from "./kernel.js";

/** Numbers of 16 bits as floats. @param {Uint16Array} bits @returns {Float32Array} */
export function halves(bits) {
  const table = halves.table ??= Float32Array.from({ length: 65536 }, (_, b) => {
    const sign = b >> 15 ? -1 : 1, exponent = (b >> 10) & 31, part = b & 1023;
    if (exponent === 31) return part ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -14 * (part / 1024));
  });
  return Float32Array.from(bits, (b) => table[b]);
}

/**
 * What a safetensors file holds. @param {ArrayBuffer} buffer
 * @returns {Object<string, {shape: number[], data: Float32Array}>}
 */
export function tensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true)), found = {};
  const head = JSON.parse(String.fromCharCode(...new Uint8Array(buffer, 8, size)));
  delete head.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(head)) {
    const bytes = buffer.slice(8 + size + from, 8 + size + to);
    if (dtype !== "F16" && dtype !== "F32") throw new Error(`${name} is of ${dtype}; F16 and F32 are read`);
    found[name] = { shape, data: dtype === "F16" ? halves(new Uint16Array(bytes)) : new Float32Array(bytes) };
  }
  return found;
}

/**
 * Adds LoRA adapters to weights, in place: W + s · B A, and single tokens' rows. @param {Object<string, {shape: number[], data: Float32Array}>} weights
 * @param {Object<string, {shape: number[], data: Float32Array}>} adapters by PEFT's names
 * @param {{r: number, lora_alpha: number, use_rslora?: boolean}} config of adapter_config.json
 */
export function merge(weights, adapters, config) {
  const scale = config.lora_alpha / (config.use_rslora ? Math.sqrt(config.r) : config.r), rows = config.trainable_token_indices;
  for (const [name, a] of Object.entries(adapters)) {
    const table = name.match(/^base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta$/);  // new rows of single tokens
    if (table) for (const [i, id] of (Array.isArray(rows) ? rows : rows[table[1].split(".").at(-1)]).entries()) weights[`${table[1]}.weight`].data.set(a.data.subarray(i * a.shape[1], (i + 1) * a.shape[1]), id * a.shape[1]);
    const found = name.match(/^base_model\.model\.(.+)\.lora_A\.weight$/);
    if (!found) continue;
    const b = adapters[name.replace("lora_A", "lora_B")].data, w = weights[`${found[1]}.weight`];
    const [out, inn] = w.shape, rank = a.shape[0];
    for (let i = 0; i < out; i++) for (let k = 0; k < rank; k++) {
      const x = scale * b[i * rank + k];
      for (let j = 0; j < inn; j++) w.data[i * inn + j] += x * a.data[k * inn + j];
    }
  }
}

/** A decoder with a cache of `slots` sequences of `length` tokens, for at most `rows` rows at once. */
export class Model {
  /**
   * @param {Object<string, any>} config a model folder's config.json
   * @param {Object<string, {shape: number[], data: Float32Array}>} weights as `tensors` reads them
   * @param {{slots: number, length: number, rows: number, keep?: boolean, kernel?: boolean}} o
   *   keep: what a backward pass needs; kernel: false for plain JavaScript
   */
  constructor(config, weights, { slots, length, rows, keep = false, kernel = true }) {
    const c = this.config = config;
    Object.assign(this, { slots, length, rows, keep });
    this.D = c.hidden_size; this.F = c.intermediate_size; this.V = c.vocab_size; this.d = c.head_dim;
    this.H = c.num_attention_heads; this.K = c.num_key_value_heads; this.Q = (this.H + 2 * this.K) * this.d;
    this.eps = c.rms_norm_eps;
    if (!c.tie_word_embeddings || c.rope_scaling || c.attention_bias) throw new Error("this model has parts that the page's decoder lacks");
    if (keep && c.model_type === "qwen3") throw new Error("norms on queries and keys have no backward pass here");
    this.plan(c.num_hidden_layers);
    ({ f: this.f, product: this.product, fast: this.fast } = workspace(this.size, kernel));
    for (const { name, at } of this.names) {
      if (!weights[name]) throw new Error(`the weights lack ${name}`);
      this.f.set(weights[name].data, at);
    }
    const angle = Float32Array.from({ length: this.d / 2 }, (_, i) => 1 / (c.rope_theta ** (2 * i / this.d)));
    this.turn = Float32Array.from({ length: length * this.d }, (_, i) => {
      const place = Math.floor(i / this.d), pair = i % this.d, x = Math.fround(place * angle[pair % (this.d / 2)]);
      return pair < this.d / 2 ? Math.cos(x) : Math.sin(x);
    });
    this.refresh();
  }

  /** Where everything lies. Parameters first and as in the file, [out, in], so that gradients and Adam are one loop. */
  plan(layers) {
    const { D, F, V, d, H, K, Q, rows, slots, length, keep } = this;
    let at = 0;
    const take = (n) => { const here = at; at += n; return here };
    this.names = [];
    const parameter = (name, shape) => { const here = take(shape.reduce((a, b) => a * b)); this.names.push({ name, at: here, shape }); return here };
    const embed = parameter("model.embed_tokens.weight", [V, D]);
    this.layers = Array.from({ length: layers }, (_, i) => {
      const p = `model.layers.${i}.`, w = { norm1: parameter(`${p}input_layernorm.weight`, [D]) };
      w.qkv = parameter(`${p}self_attn.q_proj.weight`, [H * d, D]);
      parameter(`${p}self_attn.k_proj.weight`, [K * d, D]);
      parameter(`${p}self_attn.v_proj.weight`, [K * d, D]);
      if (this.config.model_type === "qwen3") { w.qn = parameter(`${p}self_attn.q_norm.weight`, [d]); w.kn = parameter(`${p}self_attn.k_norm.weight`, [d]) }
      w.out = parameter(`${p}self_attn.o_proj.weight`, [D, H * d]);
      w.norm2 = parameter(`${p}post_attention_layernorm.weight`, [D]);
      w.gu = parameter(`${p}mlp.gate_proj.weight`, [F, D]);
      parameter(`${p}mlp.up_proj.weight`, [F, D]);
      w.down = parameter(`${p}mlp.down_proj.weight`, [D, F]);
      return w;
    });
    const norm = parameter("model.norm.weight", [D]);
    this.parameters = at;
    if (keep) { this.grad = take(at); this.m = take(this.parameters); this.v = take(this.parameters) }
    this.top = { embed, norm, head: take(D * V) };
    const each = () => ({ x: take(rows * D), n1: take(rows * D), qkv: take(rows * Q), mix: take(rows * H * d), mid: take(rows * D),
      n2: take(rows * D), gu: take(rows * 2 * F), act: take(rows * F), p: keep ? take(rows * H * length) : take(length) });
    const shared = keep ? null : each();
    for (const w of this.layers) {
      Object.assign(w, { qkvT: take(D * Q), outT: take(H * d * D), guT: take(D * 2 * F), downT: take(F * D), kept: shared || each(),
        cache: take(2 * slots * K * length * d) });
    }
    this.last = take(rows * D); this.hidden = take(rows * D); this.picked = take(rows * D); this.logits = take(rows * V);
    if (keep) this.back = { x: take(rows * D), wide: take(rows * Math.max(2 * F, Q)), mid: take(rows * Math.max(F, D, H * d)) };
    this.size = at;
  }

  /** Transposed copies of the matrices, after the parameters have changed. */
  refresh() {
    const { D, F, V, H, d, Q, f } = this;
    const transpose = (from, to, out, inn) => { for (let i = 0; i < out; i++) for (let j = 0; j < inn; j++) f[to + j * out + i] = f[from + i * inn + j] };
    transpose(this.top.embed, this.top.head, V, D);
    for (const w of this.layers) {
      transpose(w.qkv, w.qkvT, Q, D); transpose(w.out, w.outT, D, H * d);
      transpose(w.gu, w.guT, 2 * F, D); transpose(w.down, w.downT, D, F);
    }
  }

  normalise(from, to, weight, rows, size) {
    const { f, eps } = this;
    for (let r = 0; r < rows; r++) {
      const a = from + r * size, b = to + r * size;
      let s = 0;
      for (let i = 0; i < size; i++) s += f[a + i] * f[a + i];
      s = 1 / Math.sqrt(s / size + eps);
      for (let i = 0; i < size; i++) f[b + i] = f[a + i] * s * f[weight + i];
    }
  }

  /** Turns the pairs (i, i + d/2) of one head by its place; `sign` -1 turns back. */
  rotate(at, place, sign = 1) {
    const { f, d, turn } = this, half = d / 2;
    for (let i = 0; i < half; i++) {
      const cos = turn[place * d + i], sin = sign * turn[place * d + half + i], a = f[at + i], b = f[at + half + i];
      f[at + i] = a * cos - b * sin; f[at + half + i] = b * cos + a * sin;
    }
  }

  /**
   * Hidden states after the final norm, in `this.hidden`; keys and values go into the cache.
   * @param {ArrayLike<number>} tokens @param {ArrayLike<number>} slot @param {ArrayLike<number>} place of each row
   */
  forward(tokens, slot, place) {
    const { D, F, Q, H, d, f } = this, rows = tokens.length;
    if (rows > this.rows) throw new Error(`${rows} rows, ${this.rows} at most`);
    let x = this.layers[0].kept.x;
    for (let r = 0; r < rows; r++) f.copyWithin(x + r * D, this.top.embed + tokens[r] * D, this.top.embed + (tokens[r] + 1) * D);
    for (const [i, w] of this.layers.entries()) {
      const k = w.kept, next = i + 1 < this.layers.length ? this.layers[i + 1].kept.x : this.last;
      this.normalise(x, k.n1, w.norm1, rows, D);
      this.product(k.n1, D, 1, w.qkvT, Q, k.qkv, Q, rows, Q, D);
      this.attend(w, slot, place, rows);
      this.product(k.mix, H * d, 1, w.outT, D, k.mid, D, rows, D, H * d);
      for (let j = 0; j < rows * D; j++) f[k.mid + j] += f[x + j];
      this.normalise(k.mid, k.n2, w.norm2, rows, D);
      this.product(k.n2, D, 1, w.guT, 2 * F, k.gu, 2 * F, rows, 2 * F, D);
      for (let r = 0; r < rows; r++) for (let j = 0, a = k.gu + r * 2 * F, b = k.act + r * F; j < F; j++) f[b + j] = f[a + j] / (1 + Math.exp(-f[a + j])) * f[a + F + j];
      this.product(k.act, F, 1, w.downT, D, next, D, rows, D, F);
      for (let j = 0; j < rows * D; j++) f[next + j] += f[k.mid + j];
      x = next;
    }
    this.normalise(x, this.hidden, this.top.norm, rows, D);
  }

  /** Attention of one layer: all keys and values are written before any row looks. */
  attend(w, slot, place, rows) {
    const { Q, H, K, d, f, length, slots } = this, { qkv, mix, p } = w.kept, scale = d ** -.5, share = H / K;
    const at = (r, head, values) => w.cache + (((values * slots + slot[r]) * K + head) * length) * d;
    for (let r = 0; r < rows; r++) {
      for (let h = 0; h < H + K; h++) {
        const here = qkv + r * Q + h * d;
        if (w.qn !== undefined) this.normalise(here, here, h < H ? w.qn : w.kn, 1, d);
        this.rotate(here, place[r]);
      }
      for (let h = 0; h < 2 * K; h++) { const from = qkv + r * Q + (H + h) * d; f.copyWithin(at(r, h % K, h < K ? 0 : 1) + place[r] * d, from, from + d) }
    }
    for (let r = 0; r < rows; r++) for (let h = 0; h < H; h++) {
      const q = qkv + r * Q + h * d, keys = at(r, Math.floor(h / share), 0), values = at(r, Math.floor(h / share), 1), n = place[r] + 1;
      const probs = this.keep ? p + (r * H + h) * length : p, out = mix + (r * H + h) * d;
      let top = -Infinity, total = 0;
      for (let t = 0; t < n; t++) {
        let s = 0;
        for (let i = 0, key = keys + t * d; i < d; i++) s += f[q + i] * f[key + i];
        f[probs + t] = s *= scale;
        if (s > top) top = s;
      }
      for (let t = 0; t < n; t++) total += f[probs + t] = Math.exp(f[probs + t] - top);
      f.fill(0, out, out + d);
      for (let t = 0; t < n; t++) {
        const share = f[probs + t] /= total;
        for (let i = 0, value = values + t * d; i < d; i++) f[out + i] += share * f[value + i];
      }
    }
  }

  /** Logits of some rows of the last forward pass. @param {ArrayLike<number>} rows @returns {Float32Array} [rows, V]; valid until the next call */
  logitsOf(rows) {
    const { D, V, f } = this;
    for (let i = 0; i < rows.length; i++) f.copyWithin(this.picked + i * D, this.hidden + rows[i] * D, this.hidden + (rows[i] + 1) * D);
    this.product(this.picked, D, 1, this.top.head, V, this.logits, V, rows.length, V, D);
    return f.subarray(this.logits, this.logits + rows.length * V);
  }
}

/** log softmax of one row of logits over a temperature. @param {Float32Array} row @param {number} temperature @returns {Float64Array} */
export function logProbabilities(row, temperature = 1) {
  const out = Float64Array.from(row, (x) => x / temperature);
  let top = -Infinity, total = 0;
  for (const x of out) if (x > top) top = x;
  for (const x of out) total += Math.exp(x - top);
  const z = top + Math.log(total);
  return out.map((x) => x - z);
}

/**
 * Samples an answer to each prompt, side by side; yields after every token.
 * @param {Model} model @param {number[][]} prompts at most one per slot
 * @param {{temperature?: number, most: number, stop: number[], random: () => number}} o temperature 0: the likeliest
 * @yields {{slot: number, token: number, logp: number, done: boolean}[]} what was added
 */
export function* sample(model, prompts, { temperature = 1, most, stop, random }) {
  const rows = prompts.flatMap((tokens, slot) => tokens.map((token, place) => [token, slot, place]));
  let ends = [], at = -1;
  for (const p of prompts) ends.push(at += p.length);
  let alive = prompts.map((p, slot) => ({ slot, place: p.length }));
  const per = Math.floor(model.rows / Math.max(...prompts.map((p) => p.length)));
  if (prompts.length > per) throw new Error(`${prompts.length} prompts, ${per} at most`);
  model.forward(...[0, 1, 2].map((k) => rows.map((r) => r[k])));
  for (let n = 0; n < most && alive.length; n++) {
    const logits = model.logitsOf(ends), said = [];
    for (const [i, one] of alive.entries()) {
      const logp = logProbabilities(logits.subarray(i * model.V, (i + 1) * model.V), temperature || 1);
      const token = temperature ? draw(logp, random()) : logp.indexOf(Math.max(...logp));
      said.push({ slot: one.slot, token, logp: logp[token], done: stop.includes(token) || n + 1 === most });
    }
    yield said;
    alive = alive.filter((_, i) => !said[i].done);
    const next = said.filter((s) => !s.done);
    if (!alive.length) return;
    model.forward(next.map((s) => s.token), next.map((s) => s.slot), alive.map((a) => a.place++));
    ends = alive.map((_, i) => i);
  }
}

/** Index drawn from log-probabilities by one uniform number. @param {Float64Array} logp @param {number} u */
export function draw(logp, u) {
  for (let i = 0; i < logp.length; i++) if ((u -= Math.exp(logp[i])) < 0) return i;
  return logp.indexOf(Math.max(...logp));
}
