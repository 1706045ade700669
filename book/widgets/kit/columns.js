// Answers as columns of tokens, tinted by what an update will do to them, with verdicts and bars of advantages below.
const SVG = "http://www.w3.org/2000/svg";
const put = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes)) if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  return element;
};
const LINE = 19, HEAD = 26, BARS = 104, ROOM = 12;

export class Columns {
  /** @param {Element} parent @param {{label: string, on: (i: number) => void}} o on: a column is chosen */
  constructor(parent, o) {
    this.o = o;
    this.svg = put(document.createElementNS(SVG, "svg"), { class: "pt-answers", role: "listbox", "aria-label": o.label });
    parent.append(this.svg);
    this.made = new Map();
    this.count = 0;
    this.svg.addEventListener("keydown", (e) => {
      const at = [...this.svg.querySelectorAll("[role=option]")].indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.count - 1 }[e.key];
      if (to === undefined || at < 0) return;
      e.preventDefault();
      const i = Math.min(this.count - 1, Math.max(0, to));
      this.o.on(i);
      this.made.get(`g${i}`).focus();
    });
  }

  one(key, tag, parent, attributes, words) {
    let element = this.made.get(key);
    if (!element) { element = document.createElementNS(SVG, tag); parent.append(element); this.made.set(key, element) }
    this.kept.add(key);
    if (words !== undefined && element.textContent !== words) element.textContent = words;
    return put(element, attributes);
  }

  /**
   * @param {{width: number, head: string, chosen: number, range: number, columns: Array<{tokens: string[],
   *   reward: number|null, advantage: number, tint: number}>}} o head: the prompt; range: of the advantages
   */
  draw({ width, head, chosen, range, columns }) {
    this.kept = new Set();
    this.count = columns.length;
    const wide = width > 520, left = wide ? 68 : 4, step = Math.min(94, (width - left - 6) / columns.length), longest = Math.max(ROOM, ...columns.map((c) => c.tokens.length));
    const bottom = HEAD + longest * LINE + 24, middle = bottom + BARS / 2, height = bottom + BARS + 4;
    put(this.svg, { viewBox: `0 0 ${width} ${height}`, width, height });
    this.one("head", "text", this.svg, { class: "quiet", x: left + 2, y: 15 }, head);
    if (wide) {
      this.one("verdict", "text", this.svg, { class: "quiet", x: 0, y: bottom - 7 }, "verdict");
      this.one("axis", "text", this.svg, { class: "quiet", x: 0, y: middle + 4 }, "advantage");
    }
    this.one("zero", "line", this.svg, { class: "pt-rule quiet", x1: left, x2: left + step * columns.length, y1: middle, y2: middle });
    for (const [i, c] of columns.entries()) this.column(i, c, { x: left + i * step, step, bottom, middle, range, height, chosen: i === chosen });
    for (const [key, element] of this.made) if (!this.kept.has(key)) { element.remove(); this.made.delete(key) }
  }

  column(i, c, { x, step, bottom, middle, range, height, chosen }) {
    const role = c.advantage > 0 ? "rew" : c.advantage < 0 ? "bad" : "quiet", known = c.reward !== null, cell = Math.min(step - 3, 40);
    const group = this.one(`g${i}`, "g", this.svg, { role: "option", tabindex: chosen ? 0 : -1, "aria-selected": chosen, class: role,
      "aria-label": `Answer ${i + 1}: ${c.tokens.join("")}${known ? `, ${c.reward ? "right" : "wrong"}, advantage ${c.advantage.toFixed(2)}` : ""}` });
    group.onclick = () => this.o.on(i);
    this.one(`b${i}`, "rect", group, { class: `pt-pick${chosen ? " chosen" : ""}`, x: x + 1, y: HEAD - 4, width: step - 2, height: height - HEAD, rx: 3 });
    for (const [t, token] of c.tokens.entries()) {
      const y = HEAD + t * LINE;
      this.one(`c${i}.${t}`, "rect", group, { class: "pt-cell", x: x + (step - cell) / 2, y, width: cell, height: LINE - 2, rx: 2, "fill-opacity": (0.75 * c.tint).toFixed(2) });
      this.one(`t${i}.${t}`, "text", group, { class: "pt-char", x: x + step / 2, y: y + 13.5, "text-anchor": "middle" }, token);
    }
    if (!known) return;
    const sign = c.reward ? "✓" : "✗";
    this.one(`v${i}`, "text", group, { class: `pt-verdict ${c.reward ? "rew" : "bad"}`, x: x + step / 2, y: bottom - 6, "text-anchor": "middle" }, sign);
    const tall = Math.abs(c.advantage) / range * (BARS / 2 - 14), up = c.advantage > 0;
    this.one(`a${i}`, "rect", group, { class: `pt-bar ${role}`, x: x + step * 0.22, width: step * 0.56, y: up ? middle - tall : middle, height: Math.max(1, tall) });
    if (step > 30) this.one(`n${i}`, "text", group, { class: "pt-small", x: x + step / 2, y: up ? middle - tall - 4 : middle + tall + 12, "text-anchor": "middle" }, c.advantage.toFixed(2).replace("-", "−"));
  }
}
