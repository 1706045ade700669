// What can be dragged can be moved by keys as well: an element becomes a slider.

/**
 * Make an element draggable, and a slider for keyboard and screen reader.
 * @param {Element} element at least 44 px wide and high where it takes the pointer
 * @param {Object} o
 * @param {string} o.label what it sets
 * @param {() => number} o.value its present value
 * @param {number | (() => number)} o.min
 * @param {number | (() => number)} o.max
 * @param {number} [o.step] of an arrow key; Page Up and Page Down go ten of them. Default: a hundredth of the range
 * @param {(v: number) => string} [o.text] the value in words
 * @param {(event: PointerEvent) => number} o.at value under the pointer
 * @param {(v: number) => void} o.on called with the new value, within min and max
 * @param {boolean} [o.snap] round what the pointer gives to whole steps
 * @returns {() => void} call it after each draw: it tells the value to a screen reader
 */
export function handle(element, o) {
  const end = (x) => typeof x === "function" ? x() : x;
  const step = () => o.step ?? (end(o.max) - end(o.min)) / 100;
  let off = null, fresh = null;  // fresh: set since the last draw, so that quick keys add up
  const now = () => fresh ?? o.value();
  const put = (v) => { fresh = Math.min(end(o.max), Math.max(end(o.min), v)); o.on(fresh) };
  element.setAttribute("role", "slider");
  element.setAttribute("tabindex", "0");
  element.setAttribute("aria-label", o.label);
  element.classList.add("pt-handle");
  element.addEventListener("pointerdown", (e) => {
    if (e.button) return;
    off = now() - o.at(e);  // taken beside its middle, it does not jump
    element.setPointerCapture(e.pointerId);
    element.focus({ preventScroll: true });
    e.preventDefault();
  });
  element.addEventListener("pointermove", (e) => {
    if (off === null) return;
    const v = o.at(e) + off;
    put(o.snap ? Math.round(v / step()) * step() : v);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) element.addEventListener(name, () => { off = null });
  element.addEventListener("keydown", (e) => {
    const go = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[e.key];
    if (go) put(now() + go * step());
    else if (e.key === "Home") put(end(o.min));
    else if (e.key === "End") put(end(o.max));
    else return;
    e.preventDefault();
  });
  const sync = () => {
    fresh = null;
    element.setAttribute("aria-valuemin", +end(o.min).toPrecision(6));
    element.setAttribute("aria-valuemax", +end(o.max).toPrecision(6));
    element.setAttribute("aria-valuenow", +o.value().toPrecision(6));
    if (o.text) element.setAttribute("aria-valuetext", o.text(o.value()));
  };
  sync();
  return sync;
}
