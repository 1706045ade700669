// A strip of tokens: text as the model reads it, each token tinted by a number and marked by a line style.
import { make } from "./base.js";

/**
 * A strip of tokens below a parent.
 * @param {Element} parent
 * @param {{label: string, on?: (i: number) => void}} o label: what the strip is; on: called with a token that is chosen
 * @returns {{element: Element, show: (tokens: Array<{text: string, role?: string, tint?: number, mark?: string,
 *   title?: string, chosen?: boolean}>) => void}}
 *   show draws them: role is the colour, tint 0 to 1 how strong, mark "solid", "dotted" or "dashed" the line below;
 *   title is what the pointer and a screen reader get besides the text.
 */
export function strip(parent, o) {
  const element = make("div", { class: "pt-tokens", role: o.on ? "listbox" : "list", "aria-label": o.label });
  const made = [];
  let at = 0;
  const choose = (i) => {
    at = Math.min(made.length - 1, Math.max(0, i));
    for (const [k, span] of made.entries()) span.tabIndex = k === at ? 0 : -1;
    o.on(at);
  };
  if (o.on) {
    element.addEventListener("click", (e) => { const i = made.indexOf(e.target.closest(".pt-token")); if (i >= 0) choose(i) });
    element.addEventListener("keydown", (e) => {
      const go = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[e.key];
      if (!go) return;
      e.preventDefault();
      choose(at + go);
      made[at].focus();
    });
  }
  parent.append(element);
  const show = (tokens) => {
    while (made.length > tokens.length) made.pop().remove();
    for (const [i, t] of tokens.entries()) {
      if (!made[i]) {
        made[i] = make("span", { role: o.on ? "option" : "listitem", tabindex: o.on ? (i ? -1 : 0) : undefined });
        element.append(made[i]);
      }
      const tint = Math.round(100 * Math.min(1, Math.max(0, t.tint ?? 0)));
      const key = `${t.text}|${t.role}|${t.mark}|${tint}|${t.title}|${!!t.chosen}`, span = made[i];
      if (span.shown === key) continue;
      span.shown = key;
      span.textContent = visible(t.text);
      span.className = `pt-token ${t.role || ""} ${t.mark || ""}`;
      span.style.setProperty("--tint", `${tint}%`);
      span.title = t.title || "";
      span.setAttribute("aria-label", `${t.text} ${t.title || ""}`);
      if (o.on) span.setAttribute("aria-selected", !!t.chosen);
    }
  };
  return { element, show };
}

/** A token's text with its blanks to be seen: spaces and ends of lines. @param {string} text */
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "\u00a0") || "∅";
