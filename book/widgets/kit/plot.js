// Axes, lines, bands, bars, dots and labels in an SVG of real pixels, so that text has one size at every width; and a
// canvas below them for clouds of many marks. Marks have a key: a draw changes what is there and removes nothing twice.
import { handle } from "./handle.js";

const SVG = "http://www.w3.org/2000/svg";
let count = 0;

const known = new WeakMap();  // what was set last: asking the page for it would cost more than the drawing
const put = (element, attributes) => {
  const last = known.get(element) || {};
  known.set(element, last);
  for (const name in attributes) {
    const value = attributes[name] ?? null;
    if (last[name] === value || (value === null && !(name in last))) continue;
    last[name] = value;
    if (value === null) element.removeAttribute(name);
    else element.setAttribute(name, value);
  }
  return element;
};
const svg = (tag, attributes = {}) => put(document.createElementNS(SVG, tag), attributes);
const short = (x) => Math.round(x * 10) / 10;

/** About five round numbers between two ends. @param {number} low @param {number} high @param {number} [about] */
export function ticks(low, high, about = 5) {
  const span = Math.max(high - low, 1e-12);
  let step = 10 ** Math.floor(Math.log10(span / about));
  step *= [1, 2, 5, 10].find((m) => span / (m * step) <= about + 1);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) found.push(+(k * step).toPrecision(10));
  return found;
}

/** A number for an axis or a label: a true minus, no trailing zeros. @param {number} x @param {number} [digits] */
export const number = (x, digits = 3) => String(+x.toPrecision(digits)).replace("-", "−");

/** A role's colour as the canvas takes it. @param {Element} near @param {string} role */
export function colour(near, role) {
  const probe = document.createElement("i");
  probe.style.cssText = `color: var(--${role}); display: none`;
  near.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/**
 * A plot. Roles are colours and line styles with one meaning in the whole book: pol (current policy), old, rf
 * (reference), rew (reward, advantage > 0), kl, bad (penalty, advantage < 0), ink, quiet.
 */
export class Plot {
  /**
   * @param {Element} parent
   * @param {{label: string, height?: number, left?: number, right?: number, top?: number, bottom?: number}} o
   *   label: what it shows, for a screen reader; the others are px (margins around the axes)
   */
  constructor(parent, o) {
    this.o = { height: 260, left: 46, right: 16, top: 24, bottom: 40, ...o };
    this.parent = parent;
    this.box = document.createElement("div");
    this.box.className = "pt-plot";
    this.svg = svg("svg", { role: "group", "aria-label": o.label });
    this.id = `pt-clip-${++count}`;
    const clip = svg("clipPath", { id: this.id });
    this.window = svg("rect");
    clip.append(this.window);
    const defs = svg("defs");
    defs.append(clip);
    this.back = svg("g");                                         // axes
    this.inside = svg("g", { "clip-path": `url(#${this.id})` });  // what ends at the axes
    this.front = svg("g");                                        // dots, labels, handles
    this.svg.append(defs, this.back, this.inside, this.front);
    this.box.append(this.svg);
    parent.append(this.box);
    this.marks = new Map();
    this.syncs = [];
    new ResizeObserver(([e]) => { this.room = e.contentRect.width }).observe(this.box);  // reading it in a draw would lay out the page
  }

  /**
   * Begin a draw: the size (by default the parent's width) and the axes. Marks that are not drawn again until `end()` disappear.
   * @param {{x: Axis, y: Axis, width?: number, height?: number}} o
   * @typedef {{min: number, max: number, label?: string, ticks?: number[], log?: boolean,
   *   format?: (v: number) => string, hide?: boolean}} Axis
   */
  begin(o) {
    const { left, right, top, bottom } = this.o;
    this.room ||= this.box.clientWidth;
    this.width = Math.max(200, o.width ?? this.room);
    this.height = o.height ?? this.o.height;
    this.x = o.x; this.y = o.y;
    const scale = (axis, from, to) => {
      const f = axis.log ? Math.log : (v) => v, a = f(axis.min), b = f(axis.max), k = (to - from) / ((b - a) || 1);
      return [(v) => from + (f(v) - a) * k, (p) => { const v = a + (p - from) / k; return axis.log ? Math.exp(v) : v }];
    };
    [this.px, this.invertX] = scale(o.x, left, this.width - right);
    [this.py, this.invertY] = scale(o.y, this.height - bottom, top);
    put(this.svg, { viewBox: `0 0 ${this.width} ${this.height}`, width: this.width, height: this.height });
    put(this.window, { x: left, y: top - 1, width: this.width - left - right, height: this.height - top - bottom + 2 });
    const key = JSON.stringify([this.width, this.height, o.x, o.y]);
    if (key !== this.drawnAxes) { this.drawnAxes = key; this.axes() }
    for (const mark of this.marks.values()) mark.kept = mark.handle;
    return this;
  }

  /** End a draw: what was not drawn again goes; handles tell their values. */
  end() {
    for (const [key, mark] of this.marks) if (!mark.kept) { mark.element.remove(); this.marks.delete(key) }
    for (const sync of this.syncs) sync();
  }

  axes() {
    const { left, right, top, bottom } = this.o, { x, y } = this, parts = [];
    const say = (axis, v) => axis.format ? axis.format(v) : number(v);
    const about = this.width < 420 ? 4 : 6;
    for (const v of x.hide ? [] : x.ticks || ticks(x.min, x.max, about)) {
      parts.push(svg("line", { class: "grid", x1: short(this.px(v)), x2: short(this.px(v)), y1: top, y2: this.height - bottom }));
      const text = svg("text", { x: short(this.px(v)), y: this.height - bottom + 17, "text-anchor": "middle" });
      text.textContent = say(x, v);
      parts.push(text);
    }
    for (const v of y.hide ? [] : y.ticks || ticks(y.min, y.max, 5)) {
      parts.push(svg("line", { class: "grid", x1: left, x2: this.width - right, y1: short(this.py(v)), y2: short(this.py(v)) }));
      const text = svg("text", { x: left - 7, y: short(this.py(v)) + 4, "text-anchor": "end" });
      text.textContent = say(y, v);
      parts.push(text);
    }
    if (x.label) parts.push(svg("text", { x: (left + this.width - right) / 2, y: this.height - 5, "text-anchor": "middle", class: "axis-name" }));
    if (x.label) parts.at(-1).textContent = x.label;
    if (y.label) parts.push(svg("text", { x: 2, y: Math.max(11, top - 12), class: "axis-name" }));
    if (y.label) parts.at(-1).textContent = y.label;
    this.back.replaceChildren(...parts);
  }

  mark(key, tag, layer, attributes) {
    let mark = this.marks.get(key);
    if (!mark) { mark = { element: svg(tag) }; layer.append(mark.element); this.marks.set(key, mark) }
    mark.kept = true;
    return put(mark.element, attributes);
  }

  /**
   * A line through points [[x, y], ...]. @param {string} key @param {Array<[number, number]>} points
   * @param {{role?: string, width?: number, dash?: string, thin?: boolean}} [o] the role brings its dash along
   */
  line(key, points, o = {}) {
    const at = points.filter((p) => Number.isFinite(p[0]) && Number.isFinite(p[1]));
    return this.mark(key, "polyline", this.inside, { class: `${o.thin ? "seed" : "mean"} ${o.role || "ink"}`, "stroke-width": o.width,
      "stroke-dasharray": o.dash, points: at.map((p) => `${short(this.px(p[0]))},${short(this.py(p[1]))}`).join(" ") });
  }

  /** A filled band between [[x, low, high], ...]. @param {string} key @param {Array<[number, number, number]>} points @param {{role?: string}} [o] */
  band(key, points, o = {}) {
    const up = points.map(([x, , b]) => `${short(this.px(x))},${short(this.py(b))}`), down = points.map(([x, a]) => `${short(this.px(x))},${short(this.py(a))}`).reverse();
    return this.mark(key, "polygon", this.inside, { class: `pt-band ${o.role || "quiet"}`, points: [...up, ...down].join(" ") });
  }

  /** A filled rectangle in values; a missing side is the edge of the plot. @param {string} key @param {{x1?: number, x2?: number, y1?: number, y2?: number, role?: string}} o */
  area(key, o) {
    const a = this.px(o.x1 ?? this.x.min), b = this.px(o.x2 ?? this.x.max), c = this.py(o.y2 ?? this.y.max), d = this.py(o.y1 ?? this.y.min);
    return this.mark(key, "rect", this.inside, { class: `pt-band ${o.role || "quiet"}`, x: short(Math.min(a, b)), width: short(Math.abs(b - a)), y: short(Math.min(c, d)), height: short(Math.abs(d - c)) });
  }

  /**
   * Bars from 0 (or `base`). @param {string} key @param {Array<{x: number, y: number, role?: string}>} bars
   * @param {{role?: string, width: number, base?: number}} o width in values of x
   */
  bars(key, bars, o) {
    const floor = this.py(o.base ?? Math.max(this.y.min, 0));
    for (const [i, b] of bars.entries()) {
      const a = this.px(b.x - o.width / 2), c = this.px(b.x + o.width / 2), y = this.py(b.y);
      this.mark(`${key}-${i}`, "rect", this.inside, { class: `pt-bar ${b.role || o.role || "pol"}`, x: short(a), width: short(Math.max(1, c - a)), y: short(Math.min(y, floor)), height: short(Math.max(.5, Math.abs(y - floor))) });
    }
  }

  /**
   * Dots: up to some hundred, each a mark of its own. @param {string} key
   * @param {Array<{x: number, y: number, role?: string, r?: number, open?: boolean, shape?: "dot"|"up"|"down"|"cross", title?: string}>} dots
   * @param {{role?: string, r?: number}} [o]
   */
  dots(key, dots, o = {}) {
    for (const [i, d] of dots.entries()) {
      const x = this.px(d.x), y = this.py(d.y), r = d.r ?? o.r ?? 4, shape = d.shape || "dot";
      const path = shape === "up" ? `M0,${-r * 1.2}L${r},${r * .8}H${-r}Z` : shape === "down" ? `M0,${r * 1.2}L${r},${-r * .8}H${-r}Z`
        : shape === "cross" ? `M${-r},${-r}L${r},${r}M${-r},${r}L${r},${-r}` : `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`;
      const element = this.mark(`${key}-${i}`, "path", this.front, { class: `pt-dot ${d.open || shape === "cross" ? "open" : ""} ${d.role || o.role || "pol"}`, d: path, transform: `translate(${short(x)} ${short(y)})` });
      if (d.title) { if (!element.firstChild) element.append(svg("title")); if (element.firstChild.textContent !== d.title) element.firstChild.textContent = d.title }
    }
  }

  /** A line across the plot at a value of x or y. @param {string} key @param {{x?: number, y?: number, role?: string, dash?: string, width?: number}} o */
  rule(key, o) {
    const { left, right, top, bottom } = this.o, x = o.x !== undefined;
    const at = x ? this.px(o.x) : this.py(o.y);
    return this.mark(key, "line", this.inside, { class: `pt-rule ${o.role || "quiet"}`, "stroke-dasharray": o.dash, "stroke-width": o.width,
      x1: short(x ? at : left), x2: short(x ? at : this.width - right), y1: short(x ? top : at), y2: short(x ? this.height - bottom : at) });
  }

  /** A label at values. @param {string} key @param {number} x @param {number} y @param {string} text @param {{role?: string, anchor?: string, dx?: number, dy?: number, bold?: boolean}} [o] */
  text(key, x, y, text, o = {}) {
    const element = this.mark(key, "text", this.front, { class: `pt-label ink-${o.role || "quiet"} ${o.bold ? "bold" : ""}`, x: short(this.px(x) + (o.dx ?? 0)), y: short(this.py(y) + (o.dy ?? 4)), "text-anchor": o.anchor || "start" });
    if (element.textContent !== text) element.textContent = text;
    return element;
  }

  /**
   * Something to drag along one axis. Call it in every draw; it is made once.
   * @param {string} key
   * @param {{x: number, y: number, axis: "x"|"y", role?: string, shape?: "dot"|"grip", label: string, value?: () => number,
   *   min: number|(() => number), max: number|(() => number), step?: number, snap?: boolean, text?: (v: number) => string,
   *   on: (v: number) => void, from?: (axisValue: number) => number, to?: (value: number) => number}} o
   *   value defaults to the axis' value at the handle; from: value of the axis to the handle's own unit (1 - low, say)
   */
  handle(key, o) {
    let mark = this.marks.get(key);
    if (!mark) {
      const element = svg("g"), grip = o.shape === "grip";
      element.append(svg("rect", { class: "pt-hit", x: -22, y: -22, width: 44, height: 44 }),
        grip ? svg("rect", { class: `pt-grip ${o.role || "ink"}`, x: -5, y: -11, width: 10, height: 22, rx: 4 }) : svg("circle", { class: `pt-knob ${o.role || "pol"}`, r: 8 }));
      this.front.append(element);
      mark = { element, handle: true, o };
      this.marks.set(key, mark);
      const from = (v) => mark.o.from ? mark.o.from(v) : v;
      this.syncs.push(handle(element, {
        label: o.label, step: o.step, snap: o.snap, text: o.text,
        min: () => typeof mark.o.min === "function" ? mark.o.min() : mark.o.min,
        max: () => typeof mark.o.max === "function" ? mark.o.max() : mark.o.max,
        value: () => mark.o.value ? mark.o.value() : from(mark.o.axis === "x" ? mark.o.x : mark.o.y),
        at: (e) => from(mark.o.axis === "x" ? this.atPointer(e).x : this.atPointer(e).y),
        on: (v) => mark.o.on(v),
      }));
    }
    mark.o = o;
    mark.kept = true;
    put(mark.element, { transform: `translate(${short(this.px(o.x))} ${short(this.py(o.y))})`, visibility: null });
    put(mark.element.lastChild, { class: `${o.shape === "grip" ? "pt-grip" : "pt-knob"} ${o.role || (o.shape === "grip" ? "ink" : "pol")}` });
    return mark.element;
  }

  /** Hide a handle that this state has no use for. @param {string} key */
  hide(key) { const mark = this.marks.get(key); if (mark) put(mark.element, { visibility: "hidden" }) }

  /** Values under a pointer. @param {PointerEvent} event */
  atPointer(event) {
    const box = this.svg.getBoundingClientRect(), scale = this.width / (box.width || 1);
    return { x: this.invertX((event.clientX - box.left) * scale), y: this.invertY((event.clientY - box.top) * scale) };
  }

  /**
   * Very many marks, on a canvas below the lines; draws at once. @param {Array<{points: ArrayLike<number>, role: string, size?: number, alpha?: number}>} layers
   *   points: x, y, x, y, ... in values
   */
  cloud(layers) {
    if (!this.canvas) {
      this.canvas = document.createElement("canvas");
      this.canvas.setAttribute("aria-hidden", "true");
      this.box.prepend(this.canvas);
    }
    const dense = devicePixelRatio || 1, c = this.canvas.getContext("2d");
    if (this.canvas.width !== Math.round(this.width * dense) || this.canvas.height !== Math.round(this.height * dense)) {
      this.canvas.width = Math.round(this.width * dense); this.canvas.height = Math.round(this.height * dense);
      this.canvas.style.width = `${this.width}px`; this.canvas.style.height = `${this.height}px`;
    }
    c.setTransform(dense, 0, 0, dense, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    for (const layer of layers) {
      const size = layer.size ?? 2.5, p = layer.points;
      c.fillStyle = colour(this.box, layer.role);
      c.globalAlpha = layer.alpha ?? .6;
      for (let i = 0; i + 1 < p.length; i += 2) c.fillRect(this.px(p[i]) - size / 2, this.py(p[i + 1]) - size / 2, size, size);
    }
    c.globalAlpha = 1;
  }
}
