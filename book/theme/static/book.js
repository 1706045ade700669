// The page's own script: tooltips, theme, what was read, predictions, search. Everything works without it but search.
"use strict";
const root = document.body.dataset.root;
const all = (what, inside = document) => [...inside.querySelectorAll(what)];
const kept = {
  get() { try { return JSON.parse(localStorage.getItem("book-progress")) || {} } catch { return {} } },
  set(value) { try { localStorage.setItem("book-progress", JSON.stringify(value)) } catch { /* private mode */ } },
};

// Theme -------------------------------------------------------------------------------------------------------------
{
  const page = document.documentElement, button = document.querySelector(".theme");
  const dark = () => (page.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const say = () => { button.textContent = dark() ? "Light" : "Dark" };
  button.onclick = () => {
    page.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("book-theme", page.dataset.theme) } catch { /* not kept */ }
    say();
  };
  say();
}

// Tooltips: by mouse, by focus, by tap; they can be entered, and Escape closes them ------------------------------------
{
  let open = null, owner = null, timer = 0;
  const close = () => { if (open) { open.remove(); owner.removeAttribute("aria-describedby"); open = owner = null } };
  const soon = () => { clearTimeout(timer); timer = setTimeout(close, 250) };
  const show = (link) => {
    clearTimeout(timer);
    if (owner === link) return;
    close();
    const made = document.getElementById(link.dataset.tip);
    if (!made) return;
    open = made.cloneNode(true); owner = link;
    open.id = "tip-open"; link.setAttribute("aria-describedby", "tip-open");
    link.after(open);
    document.body.append(open);
    const at = link.getClientRects()[0] || link.getBoundingClientRect(), box = open.getBoundingClientRect();
    const below = at.bottom + box.height + 8 < innerHeight || at.top < box.height + 60;
    open.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - box.width - 8)) + scrollX}px`;
    open.style.top = `${(below ? at.bottom + 6 : at.top - box.height - 6) + scrollY}px`;
    open.onpointerenter = () => clearTimeout(timer);
    open.onpointerleave = soon;
  };
  for (const link of all("a[data-tip]")) {
    let touched = false;
    link.addEventListener("pointerdown", (e) => { touched = e.pointerType !== "mouse" });
    link.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") show(link) });
    link.addEventListener("pointerleave", (e) => { if (e.pointerType === "mouse") soon() });
    link.addEventListener("focus", () => { if (!touched) show(link) });
    link.addEventListener("blur", soon);
    link.addEventListener("click", (e) => { if (touched && owner !== link) { e.preventDefault(); show(link) } });
  }
  addEventListener("keydown", (e) => { if (e.key === "Escape") close() });
  addEventListener("pointerdown", (e) => { if (open && !open.contains(e.target) && !owner.contains(e.target)) close() });
}

// What was read: a section counts when its end was on the screen ---------------------------------------------------------
{
  const draw = () => {
    const read = kept.get().read || {}, rows = all("nav [data-section]"), count = rows.filter((r) => read[r.dataset.section]).length;
    for (const row of all("[data-section]")) if (row !== document.body) row.classList.toggle("read", !!read[row.dataset.section]);
    document.querySelector(".progress p").textContent = count ? `${count} of ${rows.length} sections read.` : "What you read and guess is kept in this browser alone.";
  };
  const line = document.querySelector(".progress");
  line.hidden = false;
  line.onclick = (e) => {
    if (e.target.dataset.do === "forget") { kept.set({}); draw() }
    if (e.target.dataset.do !== "save") return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(kept.get(), null, 1)], { type: "application/json" }));
    link.download = "posttrain-book.json";
    link.click();
    URL.revokeObjectURL(link.href);
  };
  line.querySelector("input").onchange = async (e) => {
    try {
      const found = JSON.parse(await e.target.files[0].text()), mine = kept.get();
      if (!found || typeof found !== "object" || Array.isArray(found)) throw new Error();
      kept.set({ ...mine, ...found, read: { ...mine.read, ...found.read } });
      draw();
    } catch { document.querySelector(".progress p").textContent = "That file holds no progress of this book." }
    e.target.value = "";
  };
  const end = document.querySelector(".steps"), mine = document.body.dataset.section;
  if (end && mine) new IntersectionObserver(([e]) => {
    if (!e.isIntersecting) return;
    const now = kept.get();
    kept.set({ ...now, read: { ...now.read, [mine]: 1 } });
    draw();
  }).observe(end);
  draw();
  const contents = document.querySelector(".contents");
  addEventListener("keydown", (e) => { if (e.key === "Escape" && contents.open) { contents.open = false; contents.firstElementChild.focus() } });
  addEventListener("pointerdown", (e) => { if (!contents.contains(e.target)) contents.open = false });
}

// What is wider than its place can be reached and moved by keyboard ------------------------------------------------------
{
  const wide = all(".equation, .drawing, .scroll, pre");
  const reach = (box) => (box.scrollWidth > box.clientWidth + 1 ? (box.tabIndex = 0) : box.removeAttribute("tabindex"));
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => reach(entry.target)));
  for (const box of wide) sizes.observe(box);
  document.fonts.ready.then(() => wide.forEach(reach)); // with its own fonts a formula is wider
}

// Search: an index that is loaded when it is first asked for -------------------------------------------------------------
{
  const dialog = document.querySelector("dialog.search"), input = dialog.querySelector("input"), list = dialog.querySelector("ol");
  const find = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter((w) => w.length > 1);
    list.replaceChildren();
    if (!words.length || !window.bookIndex) return;
    const found = [];
    for (const [page, head, text] of window.bookIndex) {
      const low = text.toLowerCase(), top = head.toLowerCase();
      if (!words.every((w) => low.includes(w) || top.includes(w))) continue;
      found.push([words.reduce((n, w) => n + 12 * top.includes(w) + Math.min(5, low.split(w).length - 1), page.startsWith("sections") ? 30 : page.startsWith("api") ? 0 : 10), page, head, text, low.indexOf(words[0])]);
    }
    found.sort((a, b) => b[0] - a[0]);
    for (const [, page, head, text, at] of found.slice(0, 12)) {
      const item = document.createElement("li"), link = document.createElement("a"), line = document.createElement("div");
      link.href = root + page; link.textContent = head; link.onclick = () => dialog.close();
      line.textContent = (at > 60 ? "… " : "") + text.slice(Math.max(0, at - 60), at + 110) + " …";
      item.append(link, line);
      list.append(item);
    }
    if (!found.length) list.innerHTML = "<li>Nothing found.</li>";
  };
  const open = () => {
    dialog.showModal(); input.focus(); input.select();
    if (window.bookIndex) return;
    const script = document.createElement("script");
    script.src = `${root}_static/search-index.js`;
    script.onload = find;
    document.head.append(script);
  };
  input.oninput = find;
  input.onkeydown = (e) => { if (e.key === "Enter") { e.preventDefault(); const first = list.querySelector("a"); if (first) first.click() } };
  document.querySelector(".find").onclick = open;
  addEventListener("keydown", (e) => { if (e.key === "/" && !/INPUT|TEXTAREA/.test(e.target.tagName) && !dialog.open) { e.preventDefault(); open() } });
}
