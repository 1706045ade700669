// Controls that are bound to a key of a widget's state: they set it, and follow it after every draw.
import { make } from "./base.js";

const place = (widget, o, element) => { if (o.lock) element.classList.add("pt-lock"); (o.into || (o.more ? widget.more : widget.controls)).append(element); return element };

/**
 * A slider. Every control takes `more: true` (behind "More") or `into: element`, `lock: true` (it waits for a
 * guess, where a prediction `:opens:` the widget), and returns its outer element.
 * @param {import("./base.js").Widget} widget
 * @param {string} key of the state
 * @param {{label: string, min: number, max: number, step?: number, log?: boolean, text?: (v: number) => string,
 *   role?: string, more?: boolean, into?: Element}} o log: even steps are even factors; role: a colour (pol, old, ...)
 */
export function slider(widget, key, o) {
  const there = o.log ? Math.log : (v) => v, back = o.log ? Math.exp : (v) => v;
  const low = there(o.min), high = there(o.max), step = o.step ?? (high - low) / 100;
  const input = make("input", { type: "range", min: low, max: high, step: o.log ? "any" : step, oninput: () => widget.set({ [key]: clean(back(+input.value)) }) });
  if (o.log) input.addEventListener("keydown", (e) => {  // "any" leaves arrow keys without a size
    const go = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[e.key];
    if (!go) return;
    e.preventDefault();
    widget.set({ [key]: clean(back(Math.min(high, Math.max(low, there(widget.state[key]) + go * step)))) });
  });
  const shown = make("output", {});
  const element = make("label", { class: `pt-slider ${o.role || ""}` }, make("span", { text: o.label }), shown, input);
  widget.bound.push(() => {
    const v = widget.state[key], text = o.text ? o.text(v) : String(+v.toPrecision(3)).replace("-", "−");
    if (+input.value !== there(v)) input.value = there(v);
    if (shown.textContent !== text) { shown.textContent = text; input.setAttribute("aria-valuetext", text) }
  });
  return place(widget, o, element);
}
const clean = (v) => +v.toPrecision(6);

/**
 * One of a few, as a row of radio buttons.
 * @param {import("./base.js").Widget} widget
 * @param {string} key
 * @param {{label: string, options: Array<[any, string]>, more?: boolean, into?: Element, tabs?: boolean}} o
 *   options: [value, text]; tabs: without a visible label, as tabs above a drawing
 */
export function choice(widget, key, o) {
  const group = `${widget.name}-${key}`;
  const inputs = o.options.map(([value, text]) => {
    const input = make("input", { type: "radio", name: group, value: String(value), onchange: () => widget.set({ [key]: value }) });
    return [value, input, make("label", {}, input, make("span", { text }))];
  });
  const element = make("fieldset", { class: o.tabs ? "pt-choice pt-tabs" : "pt-choice" }, make("legend", { text: o.label }), ...inputs.map((i) => i[2]));
  widget.bound.push(() => { for (const [value, input] of inputs) if (input.checked !== (value === widget.state[key])) input.checked = value === widget.state[key] });
  return place(widget, o, element);
}

/**
 * On or off.
 * @param {import("./base.js").Widget} widget
 * @param {string} key of a boolean
 * @param {{label: string, more?: boolean, into?: Element}} o
 */
export function toggle(widget, key, o) {
  const input = make("input", { type: "checkbox", onchange: () => widget.set({ [key]: input.checked }) });
  const element = make("label", { class: "pt-toggle" }, input, make("span", { text: o.label }));
  widget.bound.push(() => { input.checked = widget.state[key] });
  return place(widget, o, element);
}

/**
 * A button. `enabled` is asked after every draw, `text` as well.
 * @param {import("./base.js").Widget} widget
 * @param {{label: string | (() => string), on: () => void, enabled?: () => boolean, more?: boolean, into?: Element}} o
 */
export function button(widget, o) {
  const name = () => typeof o.label === "function" ? o.label() : o.label;
  const element = make("button", { type: "button", text: name(), onclick: () => o.on() });
  widget.bound.push(() => {
    if (o.enabled) element.disabled = !o.enabled();
    if (element.textContent !== name()) element.textContent = name();
  });
  return place(widget, o, element);
}
