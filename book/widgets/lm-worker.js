// A model off the page's thread: the adder, which is trained here, and the embedded base with adapters merged in. Messages
// are {id, do, ...}; answers have the same id, and {done: true} with the last one. One thing at a time, in order.
import { ANSWERS, MOST } from "./adder.js";
import { Model, merge, sample, tensors } from "./lm.js";
import { random } from "./num.js";
import { Tokenizer } from "./tokenizer.js";
import { Trainer } from "./trainer.js";

const fetched = async (url, kind) => {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} did not come (${answer.status})`);
  return kind === "json" ? answer.json() : answer.arrayBuffer();
};
const rest = (ms) => new Promise((done) => setTimeout(done, ms));
let trainer, frozen, stopped = false;
const bases = new Map();

const tasks = {
  /** The adder, twice: one to train, one as it began. */
  async adder({ root }) {
    if (trainer) return { parameters: trainer.model.parameters, fast: trainer.model.fast };
    const [config, bytes] = await Promise.all([fetched(`${root}adder/config.json`, "json"), fetched(`${root}adder/model.safetensors`)]);
    const length = 8 + MOST, rows = ANSWERS * length, weights = tensors(bytes);
    trainer = new Trainer(new Model(config, weights, { slots: ANSWERS, length, rows, keep: true }));
    frozen = new Trainer(new Model(config, weights, { slots: ANSWERS, length, rows: ANSWERS * 8 }));
    return { parameters: trainer.model.parameters, fast: trainer.model.fast };
  },

  /** A group of answers, told token by token. */
  async group({ digits, size, temperature, seed, before, pause }, tell) {
    const going = (before ? frozen : trainer).answers(new Array(size).fill(digits), temperature, seed);
    for (;;) {
      const { value, done } = going.next();
      if (done) return { answers: value.map((s) => s.tokens) };
      tell({ said: value });
      await rest(pause);
    }
  },

  /** Steps of training, told one by one; `stop` ends them. */
  async steps({ digits, count, how, seed }, tell) {
    stopped = false;
    for (let n = 0; n < count && !stopped; n++) {
      const start = performance.now(), result = trainer.step(digits, how, seed + 2 * n);
      tell({ step: { ...result, ms: performance.now() - start } });
      await rest(0);
    }
    return {};
  },

  async undo({ count }) { return { undone: trainer.undo(count) } },

  /** The share of right ones among ANSWERS answers to one problem, by the trained model and by the frozen one. */
  async share({ digits, temperature, seed }) {
    const of = (t) => t.sampled(new Array(ANSWERS).fill(digits), temperature, seed).reduce((n, s) => n + s.reward, 0) / ANSWERS;
    return { now: of(trainer), before: of(frozen) };
  },

  /** Answers of the embedded base, with an adapter or without, told token by token. */
  async ask({ root, adapter, prompt, chat, count, temperature, most, seed }, tell) {
    const one = await base(root, adapter), t = one.tokenizer;
    const begin = chat ? [t.special.get("<|user|>"), ...t.encode(prompt), t.special.get("<|end|>"), t.special.get("<|assistant|>")] : t.encode(prompt);
    const how = { temperature, most, stop: [t.special.get("<|end|>"), t.special.get("<|endoftext|>")], random: random(seed) };
    const ids = Array.from({ length: count }, () => []);
    for (const said of sample(one.model, ids.map(() => begin), how)) {
      for (const s of said) ids[s.slot].push(s.token);
      tell({ texts: ids.map((x) => t.decode(x)) });
      await rest(0);
    }
    return { tokens: ids };
  },
};

/** The base's model, one for each adapter, and its tokenizer. */
async function base(root, adapter) {
  if (!bases.has("files")) {
    bases.set("files", Promise.all([fetched(`${root}base/config.json`, "json"), fetched(`${root}base/model.safetensors`), fetched(`${root}base/tokenizer.json`, "json")]));
  }
  const [config, bytes, file] = await bases.get("files");
  if (!bases.has(adapter)) {
    const weights = tensors(bytes);
    if (adapter) merge(weights, tensors(await fetched(`${root}${adapter}/adapter_model.safetensors`)), await fetched(`${root}${adapter}/adapter_config.json`, "json"));
    bases.set(adapter, { model: new Model(config, weights, { slots: 8, length: 256, rows: 512 }), tokenizer: bases.get("tokenizer") || new Tokenizer(file) });
  }
  return bases.get(adapter);
}

let queue = Promise.resolve();
addEventListener("message", ({ data }) => {
  if (data.do === "stop") { stopped = true; return }
  const tell = (said) => postMessage({ id: data.id, ...said });
  queue = queue.then(() => tasks[data.do](data, tell)).then((said) => tell({ ...said, done: true }), (error) => tell({ failed: error.message, done: true }));
});
