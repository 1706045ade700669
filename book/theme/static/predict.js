// Predictions: a guess is placed, then the answer opens with the guess beside the truth. Kept in this browser alone.
"use strict";
for (const box of all(".predict")) {
  const answer = box.querySelector("details"), key = `guess ${document.body.dataset.section} ${box.dataset.key}`, data = box.dataset;
  const waiting = data.opens ? document.querySelector(`pt-${data.opens}`) : null;
  const keep = (guess) => { kept.set({ ...kept.get(), [key]: guess }); if (waiting) waiting.removeAttribute("waiting") };
  const open = () => { if (answer) answer.open = true };
  const before = kept.get()[key];
  if (waiting && before === undefined) waiting.setAttribute("waiting", "");
  const element = (tag, more = {}, ...inside) => { const made = Object.assign(document.createElement(tag), more); made.append(...inside); return made };
  const add = (...made) => answer ? answer.before(...made) : box.append(...made);
  const words = (v) => String(+(+v).toPrecision(3)).replace("-", "−");

  if (!data.kind) {  // choose
    const items = all("ul li", box);
    const mark = (chosen) => items.forEach((item, i) => {
      const button = item.firstElementChild;
      button.className = i + 1 == data.right ? "right" : i === chosen ? "wrong" : "";
      button.setAttribute("aria-pressed", i === chosen);
    });
    items.forEach((item, i) => {
      for (const link of all("a", item)) link.replaceWith(...link.childNodes); // a button holds no other control
      const button = element("button", { type: "button" });
      button.append(...(item.querySelector("p") || item).childNodes);
      item.replaceChildren(button);
      button.onclick = () => { keep(i); mark(i); open() };
    });
    if (before !== undefined) mark(before);
    continue;
  }

  const [low, high, ...rest] = data.axis.split(" "), from = +low, to = +high, unit = rest.join(" ");
  if (data.kind === "place") {  // a value on an axis
    const input = element("input", { type: "range", min: from, max: to, step: (to - from) / 200, value: from });
    input.setAttribute("aria-label", `Your guess, ${unit}`);
    const said = element("output"), button = element("button", { type: "button", textContent: "Place my guess" }), line = element("p", { className: "guess-line" });
    const say = () => { said.textContent = `${words(input.value)} ${unit}`; input.setAttribute("aria-valuetext", said.textContent) };
    const ends = element("div", { className: "guess-ends" }, element("span", { textContent: words(from) }), element("span", { textContent: `${words(to)} ${unit}` }));
    const field = element("div", { className: "guess-axis" }, input);
    const show = (guess) => {
      const at = (v) => `${100 * Math.min(1, Math.max(0, (v - from) / (to - from)))}%`;
      for (const [role, v] of [["mine", guess], ["truth", +data.truth]]) {
        let mark = field.querySelector(`.${role}`);
        if (!mark) field.append(mark = element("i", { className: role }));
        mark.style.left = at(v);
      }
      input.value = guess; say();
      line.textContent = `Your guess: ${words(guess)} ${unit}. Measured: ${words(data.truth)} ${unit}.`;
    };
    input.oninput = say; say();
    button.onclick = () => { keep(+input.value); show(+input.value); open() };
    add(element("p", { className: "guess-said" }, "Your guess: ", said), field, ends, button, line);
    if (before !== undefined) show(before);
    continue;
  }

  // draw a curve: one value per step, set by the pointer going over it or by keys
  const truth = data.truth.split(" ").map(Number), n = truth.length, [x0, x1, ...xs] = (data.steps || `0 ${n - 1}`).split(" ");
  const [line, title] = (data.given || "").split(":"), given = line ? line.split(" ").map(Number) : null;
  const W = box.clientWidth < 460 ? 330 : 560, H = 230, L = 44, R = 12, T = 20, B = 34, px = (i) => L + i / (n - 1) * (W - L - R), py = (v) => H - B - (v - from) / (to - from) * (H - T - B);
  const points = (values) => values.map((v, i) => `${px(i).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
  const text = (x, y, s, anchor = "start", ink = "quiet") => `<text x="${x}" y="${y}" text-anchor="${anchor}" class="ink-${ink}">${s}</text>`;
  const pad = element("div", { className: "guess-draw", tabIndex: 0 });
  let guess = Array.isArray(before) ? before : null, at = n - 1, done = !!guess;
  const mine = () => guess || Array(n).fill(given ? given[0] : truth[0]);
  pad.setAttribute("role", "slider");
  pad.setAttribute("aria-label", `Your curve: left and right go along ${xs.join(" ") || "the steps"}, up and down change the value`);
  pad.setAttribute("aria-valuemin", from); pad.setAttribute("aria-valuemax", to);
  const draw = () => {
    const step = (i) => +x0 + i / (n - 1) * (x1 - x0), own = mine();
    pad.setAttribute("aria-valuenow", +own[at].toPrecision(3));
    pad.setAttribute("aria-valuetext", `${words(step(at))} ${xs.join(" ")}: ${words(own[at])} ${unit}`);
    pad.innerHTML = `<svg viewBox="0 0 ${W} ${H}" aria-hidden="true">${[from, (from + to) / 2, to].map((v) => `<line class="grid" x1="${L}" x2="${W - R}" y1="${py(v)}" y2="${py(v)}"/>${text(L - 6, py(v) + 4, words(v), "end")}`).join("")}`
      + text(L, H - 14, words(x0)) + text(W - R, H - 14, `${words(x1)} ${xs.join(" ")}`, "end") + text(0, 11, unit)
      + (given ? `<polyline class="mean quiet" points="${points(given)}"/>${text(W - R, py(given[n - 1]) - 7, title || "", "end")}` : "")
      + `<polyline class="mean ink" points="${points(own)}"/><circle class="guess-at" cx="${px(at)}" cy="${py(own[at])}" r="5"/>`
      + (done ? `<polyline class="mean pol" points="${points(truth.map((v) => Math.min(to, v)))}"/>${text(px(.6 * (n - 1)) + 6, py(Math.min(to, truth[Math.round(.6 * (n - 1))])) + 16, "measured", "start", "pol")}` : "")
      + (guess || done ? text(px(1), py(own[1]) - 9, "yours", "middle", "ink") : text(px((n - 1) / 2), py(to) + 16, "draw here", "middle")) + "</svg>";
  };
  const put = (i, v) => {
    const last = at, own = [...mine()];
    at = i;
    for (let k = Math.min(last, i); k <= Math.max(last, i); k++) if (guess && drawing && k !== last) own[k] = v;
    own[i] = v;
    guess = own;
    draw();
  };
  let drawing = false;
  const place = (e) => {
    const area = pad.getBoundingClientRect(), x = (e.clientX - area.left) * W / area.width, y = (e.clientY - area.top) * W / area.width;
    put(Math.max(1, Math.min(n - 1, Math.round((x - L) / (W - L - R) * (n - 1)))), Math.min(to, Math.max(from, from + (H - B - y) / (H - T - B) * (to - from))));
  };
  pad.onpointerdown = (e) => { if (done) return; pad.setPointerCapture(e.pointerId); at = 1; drawing = false; place(e); drawing = true };
  pad.onpointermove = (e) => { if (drawing && !done) place(e) };
  pad.onpointerup = pad.onpointercancel = () => { drawing = false };
  pad.onkeydown = (e) => {
    const up = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[e.key], along = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!up && !along) return;
    e.preventDefault();
    if (along) { at = Math.max(1, Math.min(n - 1, at + along)); draw() }
    if (up && !done) put(at, Math.min(to, Math.max(from, mine()[at] + up * (to - from) / 40)));
  };
  const button = element("button", { type: "button", textContent: "Compare with the run" });
  button.onclick = () => { done = true; guess = mine(); keep(guess.map((v) => +v.toPrecision(4))); draw(); open() };
  add(pad, button);
  draw();
}
