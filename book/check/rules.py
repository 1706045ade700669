"""What is asked of a page. Each rule returns sentences on what is wrong; none where nothing is."""

from pathlib import Path
from statistics import median
from typing import Any

MOST_BYTES = 60_000
MOST_PAINT = 1000.0
MOST_DRAW = 4.0
MOVES = 200


def axe(page: Any) -> list[str]:
    """What axe-core finds, on the whole page."""
    import axe_playwright_python

    page.evaluate(Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text())
    return page.evaluate(AXE)


# axe-core reads no MathML: to it, the heading of a column that is a formula is empty. Screen readers do read it.
AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"], elementRef: true });
  const formula = (n) => n.element?.querySelector("math")?.textContent;
  return found.violations.flatMap((v) => {
    const nodes = v.nodes.filter((n) => v.id !== "empty-table-header" || !formula(n));
    return nodes.length ? [`axe ${v.id}: ${v.help}: ${nodes.length} times, first ${nodes[0].target.join(" ").slice(0, 120)}`] : [];
  });
}"""


def width(page: Any) -> list[str]:
    """No sideways scroll; what sticks out is named."""
    wide, room, culprit = page.evaluate("""() => {
      const room = document.documentElement.clientWidth;
      const inside = (e) => { for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX !== "visible") return true; };
      const out = [...document.querySelectorAll("body *")].find((e) => e.getBoundingClientRect().right > room + 1 && !inside(e) && e.checkVisibility());
      return [document.documentElement.scrollWidth, room, out ? out.localName + "." + out.className : ""];
    }""")
    return [f"it scrolls sideways: {wide} px in {room} px ({culprit})"] if wide > room else []


def weight(bytes_: int) -> list[str]:
    """Small enough."""
    return [f"{bytes_ / 1000:.1f} kB compressed, {MOST_BYTES // 1000} at most"] if bytes_ > MOST_BYTES else []


def started(page: Any) -> list[str]:
    """Every widget came up."""
    return page.evaluate("""() => [...document.querySelectorAll("figure.widget > *")]
      .filter((w) => w.localName.startsWith("pt-") && !w.ready).map((w) => `${w.localName} did not start`)""")


def tabs(page: Any) -> list[str]:
    """Tab goes through the page in its order, and to every handle of a widget."""
    wrong = page.evaluate("""() => [...document.querySelectorAll("[tabindex]")]
      .filter((e) => +e.getAttribute("tabindex") > 0).map((e) => `tabindex ${e.getAttribute("tabindex")} on ${e.localName}`)""")
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); window.passed = [] }")
    limit = page.evaluate(
        "() => 20 + document.querySelectorAll('a, button, input, select, summary, [tabindex]').length"
    )
    for _ in range(min(limit, 900)):
        page.keyboard.press("Tab")
        if not page.evaluate("""() => { const e = document.activeElement;
          if (!e || e === document.body || passed.includes(e)) return false; return !!passed.push(e); }"""):
            break
    return wrong + page.evaluate("""() => {
      const say = (e) => `${e.localName} ${(e.getAttribute("aria-label") || e.textContent || e.name || "").trim().slice(0, 40)}`;
      const found = [];
      for (let i = 1; i < passed.length; i++)
        if (passed[i - 1].compareDocumentPosition(passed[i]) & Node.DOCUMENT_POSITION_PRECEDING) found.push(`Tab goes back, to ${say(passed[i])}`);
      const own = "figure.widget :is(button, select, summary, input:not([type=radio]), [role=slider], [tabindex='0'])";
      for (const e of document.querySelectorAll(own))
        if (e.checkVisibility({ visibilityProperty: true }) && !e.disabled && !e.closest("[inert]") && !passed.includes(e)) found.push(`Tab does not reach ${say(e)}`);
      for (const name of new Set([...document.querySelectorAll("figure.widget input[type=radio]")].filter((e) => e.checkVisibility() && !e.closest("[inert]")).map((e) => e.name)))
        if (!passed.some((e) => e.name === name)) found.push(`Tab does not reach the choice ${name}`);
      return found;
    }""")


def draws(page: Any) -> tuple[dict[str, float], list[str]]:
    """Widget -> median of its draws over many moves of all it can be moved by, in ms; and those that take too long."""
    times = {name: [ms for ms in took if ms is not None] for name, took in page.evaluate(DRAWS, MOVES).items()}
    found = {name: median(took) for name, took in times.items() if took}
    wrong = [
        f"{n} draws in {ms:.1f} ms (median of {MOVES}), {MOST_DRAW:g} at most"
        for n, ms in found.items()
        if ms > MOST_DRAW
    ]
    return found, wrong + [f"{name} draws nothing that could be moved" for name, took in times.items() if not took]


DRAWS = """async (moves) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const found = {};
  for (const w of document.querySelectorAll("figure.widget > *")) {
    if (!w.localName.startsWith("pt-")) continue;
    const took = found[w.localName] = [];
    const handles = [...w.querySelectorAll("[role=slider], input[type=range]")].filter((e) => e.checkVisibility());
    const others = handles.length ? [] : [...w.querySelectorAll("input[type=radio], input[type=checkbox]")].filter((e) => e.checkVisibility());
    const all = handles.length ? handles : others;
    for (let i = 0; all.length && i < moves; i++) {
      const e = all[i % all.length], forth = Math.floor(i / all.length / 20) % 2 === 0;
      if (e.type === "range") {
        const low = +e.min || 0, high = e.max === "" ? 100 : +e.max, share = (i * 0.618) % 1;
        e.value = low + share * (high - low);
        e.dispatchEvent(new Event("input", { bubbles: true }));
      } else if (e.type === "radio" || e.type === "checkbox") e.click();
      else e.dispatchEvent(new KeyboardEvent("keydown", { key: forth ? "ArrowRight" : "ArrowLeft", bubbles: true, cancelable: true }));
      await frame(); await frame();
      took.push(w.took);
    }
    if (typeof w.reset === "function") w.reset();
    await frame();
  }
  return found;
}"""


def paint(page: Any) -> float:
    """The first content on the screen, in ms after the page was asked for."""
    return page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? Infinity")


def soon(first: float) -> list[str]:
    """A first paint without delay."""
    return [f"first paint after {first:.0f} ms, {MOST_PAINT:.0f} at most"] if first > MOST_PAINT else []


def paper(page: Any, path: Path) -> list[str]:
    """A PDF, with the text and with each widget in its state."""
    page.emulate_media(media="print")
    gone = page.evaluate("""() => [...document.querySelectorAll("figure.widget > *")]
      .filter((w) => w.localName.startsWith("pt-") && !(w.stage?.getBoundingClientRect().height > 40)).map((w) => `${w.localName} is not on paper`)""")
    made = page.pdf(path=path, format="A4", print_background=True)
    page.emulate_media(media="screen")
    return gone + ([] if len(made) > 10_000 else ["the PDF is empty"])
