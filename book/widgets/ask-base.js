// The embedded base in the page, before and after training: the same question, answered side by side by two checkpoints.
import { Widget, define, make, still } from "./kit/base.js";
import { button, choice, slider } from "./kit/controls.js";
import { ask, models } from "./kit/remote.js";

const NAMES = { base: "The base model", "sums-grpo": "After 60 steps of GRPO on sums", "assistant-sft": "After fine-tuning on demonstrations" };
const COUNT = 4, MOST = 40;

class AskBase extends Widget {
  static defaults = { question: "What is 47+85?", seed: 2, temperature: 1, right: "sums-grpo" };
  static presets = [["Three digits", { question: "What is 386+457?" }], ["Break it: not a sum", { question: "Who has a pet pig?" }]];

  async load() {
    const answer = await fetch(`${models()}base/poster.json`);
    if (!answer.ok) throw new Error(`its first answers did not come (${answer.status})`);
    this.poster = await answer.json();
  }

  build() {
    this.texts = { ...this.poster.texts };
    this.shown = this.key(this.first);
    this.note = "";
    const input = make("input", { type: "text", maxlength: 60, "aria-label": "Question to the model", class: "pt-question" });
    input.addEventListener("change", () => this.set({ question: input.value.trim() || this.first.question }));
    this.bound.push(() => { if (document.activeElement !== input && input.value !== this.state.question) input.value = this.state.question });
    const row = make("div", { class: "pt-foot" });
    row.append(input);
    button(this, { label: "Sample again", into: row, enabled: () => !this.busy, on: () => this.set({ seed: (this.state.seed + 1) % 100000 }) });
    this.sides = make("div", { class: "pt-columns" });
    this.stage.append(row, this.sides);
    slider(this, "temperature", { label: "Temperature", min: 0, max: 2, step: 0.1 });
    choice(this, "right", { label: "Beside the base", options: [["sums-grpo", "GRPO on sums"], ["assistant-sft", "fine-tuned assistant"]] });
  }

  key(s) { return JSON.stringify([s.question, s.seed, s.temperature, s.right]) }

  redraw() {
    super.redraw();
    if (!this.sides || this.busy || this.key(this.state) === this.shown) return;
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.sample(), 350);
  }

  async sample() {
    const key = this.key(this.state), { question, seed, temperature, right } = this.state;
    if (this.busy || key === this.shown) return;
    this.busy = true; this.shown = key; this.note = "";
    this.texts = {};
    try {
      for (const name of ["base", right]) {
        const chat = name === "assistant-sft", prompt = chat ? question : `Q: ${question}\nA:`;
        await ask("ask", { adapter: name === "base" ? "" : name, prompt, chat, count: COUNT, temperature, most: MOST, seed },
          ({ texts }) => { this.texts[name] = texts; if (!still()) super.redraw() });
      }
    } catch (error) { this.note = `The model could not answer: ${error.message}.` }
    this.busy = false;
    this.redraw();
  }

  draw() {
    const sides = ["base", this.state.right].map((name) => {
      const rows = (this.texts[name] || new Array(COUNT).fill("")).map((text) => {
        const clean = text.replace(/<\|end\|>|<\|endoftext\|>/g, ""), [first, ...more] = clean.split("\n");
        return make("li", {}, make("b", { text: first.trim() || "…" }), make("span", { class: "pt-note", text: more.length ? ` ↵ ${more.join(" ↵ ")}` : "" }));
      });
      return make("div", {}, make("p", { class: "pt-title", text: NAMES[name] }), make("ol", { class: "pt-said" }, ...rows));
    });
    this.sides.replaceChildren(...sides);
  }

  words() {
    if (this.note) return this.note;
    const sum = this.state.question.match(/(\d+)\s*\+\s*(\d+)/), right = sum && String(+sum[1] + +sum[2]);
    const lines = (name) => (this.texts[name] || []).map((t) => t.split("\n")[0]);
    if (this.busy) return "The models in this page are writing, four answers each.";
    if (!right) return `Four answers of each to “${this.state.question}”, at temperature ${this.state.temperature}; grey is what follows the first line.`;
    const count = (name) => lines(name).filter((t) => (t.match(/\d+/g) || []).at(-1) === right).length;
    return `Of four first lines, ${count("base")} of the base and ${count(this.state.right)} of the other model end in ${right}. Grey is what follows the first line.`;
  }
}
define("ask-base", AskBase);
