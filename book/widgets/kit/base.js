// A widget is an element that holds plain state and draws it. This file does what all of them need: state in the page's
// address, one draw per frame, a sentence that says the state, presets, reset, a link to the state, data of a study.

const quiet = matchMedia("(prefers-reduced-motion: reduce)");
const link = { get: () => new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "") };

/** Whether motion should be left out: jump to the end instead. */
export const still = () => quiet.matches;

/**
 * An element with its attributes and children.
 * @param {string} tag
 * @param {Object<string, any>} [attributes] `on...` adds a listener, `text` sets the text; undefined and false are left out
 * @param {...(Node|string)} children
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** What a text in an address or in `:state:` stands for, by the type of the default. */
const read = (text, like) => typeof like === "number" ? (Number.isFinite(+text) ? +text : like)
  : typeof like === "boolean" ? text === "true" || text === "1"
  : like !== null && typeof like === "object" ? JSON.parse(text) : text;

const written = (value) => value !== null && typeof value === "object" ? JSON.stringify(value)
  : typeof value === "number" ? String(+value.toPrecision(6)) : String(value);

/**
 * Base class of all widgets. A subclass has
 *   static defaults  plain state: numbers, text, booleans, or JSON. Every key is kept in the address where it differs.
 *   static presets   [[label, state], ...]: buttons below the drawing; "Reset" and "Copy link" are added
 *   build()          once, after the data is there: fills this.stage, and this.controls through kit/controls.js
 *   draw()           after every change, at most once per frame: shows this.state; it changes nothing in it
 *   words()          one sentence that says the state
 * It reads this.state, this.data, this.width (of the stage, in px) and changes the state with this.set(...) alone.
 */
export class Widget extends HTMLElement {
  static defaults = {};
  static presets = [];
  static observedAttributes = ["waiting"];

  /** A prediction above waits for its guess: controls with `lock: true` wait with it. */
  attributeChangedCallback() { if (this.ready) this.lock() }

  lock() {
    const waits = this.hasAttribute("waiting"), held = this.querySelectorAll(".pt-lock");
    for (const control of held) control.inert = waits;
    for (const preset of this.querySelectorAll(".pt-preset")) preset.inert = waits && held.length > 0;
    this.querySelector(".pt-wait")?.remove();
    if (waits && held.length) held[0].before(make("p", { class: "pt-wait" }, "First place your guess above, or ", make("button", { type: "button", text: "skip it", onclick: () => this.removeAttribute("waiting") })));
  }

  /** Called by the browser; the content of the element stands until the widget is ready. */
  async connectedCallback() {
    if (this.state) return;
    this.name = this.localName.slice(3);
    this.first = { ...this.constructor.defaults, ...this.parsed(new URLSearchParams((this.dataset.state || "").replace(/,\s*(?=\w+=)/g, "&"))) };
    const wanted = this.linked();
    this.state = { ...this.first, ...wanted };
    this.bound = [];
    try {
      await this.load();
      this.frame();
      await this.build();
    } catch (error) {
      this.append(make("p", { class: "pt-failed", text: `This figure could not be started: ${error.message}` }));
      throw error;
    }
    this.follow();
    this.render();
    this.ready = true;
    this.lock();
    if (Object.keys(wanted).length) this.scrollIntoView({ block: "center" });
  }

  /** Fetch the data of `:data:` into this.data; a subclass may add its own. */
  async load() {
    if (!this.dataset.data) return;
    const answer = await fetch(`${document.body.dataset.root}_static/data/${this.dataset.data}.json`);
    if (!answer.ok) throw new Error(`its data did not come (${answer.status})`);
    this.data = await answer.json();
  }

  /** Subclasses fill the stage. */
  build() {}
  /** Subclasses show the state. */
  draw() {}
  /** @returns {string} one sentence that says the state */
  words() { return "" }

  /** Change the state. @param {Object<string, any>} change */
  set(change) {
    Object.assign(this.state, change);
    this.redraw();
  }

  /** Back to the state that the page began with. */
  reset() { this.set(structuredClone(this.first)) }

  /** Ask for a draw in the next frame. */
  redraw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => { this.asked = 0; this.render() });
  }

  /** Draw now. `this.took` is what it took, in ms: the browser tests read it. */
  render() {
    const start = performance.now();
    this.width ||= this.stage.clientWidth;
    this.draw();
    for (const sync of this.bound) sync();
    const said = this.words();
    if (this.said.textContent !== said) this.said.textContent = said;
    this.took = performance.now() - start;
    clearTimeout(this.later);
    this.later = setTimeout(() => { if (this.live.textContent !== said) this.live.textContent = this.ready ? said : ""; this.keep() }, 400);
  }

  /** The state in words; also what a screen reader hears after a pause. */
  toText() { return this.words() }

  /**
   * Run something over time: `step(share)` with a share from 0 to 1, once at the end under reduced motion.
   * @param {number} ms @param {(share: number) => void} step @returns {() => void} stops it
   */
  animate(ms, step) {
    if (still()) { step(1); return () => {} }
    const start = performance.now();
    let frame = 0;
    const next = (now) => {
      const share = Math.min(1, Math.max(0, (now - start) / ms));
      step(share);
      if (share < 1) frame = requestAnimationFrame(next);
    };
    frame = requestAnimationFrame(next);
    return () => cancelAnimationFrame(frame);
  }

  // What follows is for the base alone --------------------------------------------------------------------------------

  frame() {
    this.stage = make("div", { class: "pt-stage" });
    this.controls = make("div", { class: "pt-controls" });
    this.more = make("div", { class: "pt-controls" });
    this.said = make("p", { class: "pt-words" });
    this.live = make("p", { class: "pt-live", role: "status" });
    const foot = make("div", { class: "pt-foot" });
    for (const [label, state] of this.constructor.presets) {
      foot.append(make("button", { type: "button", class: "pt-preset", text: label, onclick: () => this.set({ ...structuredClone(this.first), ...structuredClone(state) }) }));
    }
    const copy = make("button", { type: "button", text: "Copy link", title: "Copy a link to this state", onclick: () => this.copy(copy) });
    foot.append(make("button", { type: "button", text: "Reset", onclick: () => this.reset() }), copy);
    const more = make("details", { class: "pt-more" }, make("summary", { text: "More" }), this.more);
    this.replaceChildren(this.stage, this.said, this.controls, more, foot, this.live);
    new MutationObserver(() => { more.hidden = !this.more.childElementCount }).observe(this.more, { childList: true });
    more.hidden = true;
  }

  follow() {
    new ResizeObserver(([e]) => { if (Math.abs(e.contentRect.width - this.width) > .5) { this.width = e.contentRect.width; this.redraw() } }).observe(this.stage);
    new MutationObserver(() => this.redraw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    addEventListener("hashchange", () => { const wanted = this.linked(); if (Object.keys(wanted).length) this.set({ ...this.first, ...wanted }) });
    addEventListener("beforeprint", () => this.render());
  }

  parsed(search, prefix = "") {
    const found = {};
    for (const [key, like] of Object.entries(this.constructor.defaults)) {
      const text = search.get(prefix + key);
      if (text === null) continue;
      try { found[key] = read(text.trim(), like) } catch { /* an address cut short: the default stays */ }
    }
    return found;
  }

  linked() { return this.parsed(link.get(), `${this.name}.`) }

  /** The address with this widget's state in it, others' kept. */
  address() {
    const search = link.get();
    for (const [key, value] of Object.entries(this.state)) {
      search.delete(`${this.name}.${key}`);
      if (key in this.constructor.defaults && written(value) !== written(this.first[key])) search.set(`${this.name}.${key}`, written(value));
    }
    const text = search.toString();
    return location.pathname + location.search + (text ? `#${text}` : "");
  }

  keep() {
    if (!this.ready) return;
    const address = this.address(), mine = !location.hash || location.hash.includes("=");
    if (address !== location.pathname + location.search + location.hash && (mine || address.includes("#"))) history.replaceState(history.state, "", address);
  }

  async copy(button) {
    this.keep();
    const url = new URL(this.address(), location.href);
    if (!url.hash) url.hash = this.closest("figure")?.id || "";
    try { await navigator.clipboard.writeText(url.href); button.textContent = "Copied" } catch { prompt("The link to this state", url.href) }
    setTimeout(() => { button.textContent = "Copy link" }, 1500);
  }
}

/** Make the class known as <pt-name>. @param {string} name @param {typeof Widget} type */
export function define(name, type) { customElements.define(`pt-${name}`, type) }
