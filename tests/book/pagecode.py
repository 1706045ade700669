"""The page's own modules in V8, as a page loads them: with their imports."""

import functools
import re
from pathlib import Path

WIDGETS = Path(__file__).parents[2] / "book/widgets"


@functools.cache
def engine(*names: str):
    """An engine that knows what these modules export, under their own names."""
    from py_mini_racer import MiniRacer

    made, done = MiniRacer(), []
    made.eval("globalThis.modules = {}")
    for name in names:
        _add(made, name, done)
        made.eval(f"Object.assign(globalThis, modules['{name}'])")
    return made


def _add(made, name: str, done: list[str]) -> None:
    """Evaluate a module after those that it imports."""
    if name in done:
        return
    text = (WIDGETS / f"{name}.js").read_text()
    for other in re.findall(r'^import .* from "\./([\w/-]+)\.js";$', text, re.M):
        _add(made, other, done)
    text = re.sub(r'^import (\{.*\}) from "\./([\w/-]+)\.js";$', r"const \1 = modules['\2'];", text, flags=re.M)
    names = re.findall(r"^export (?:async )?(?:function\*? |class |const )(\w+)", text, re.M)
    body = re.sub(r"^export ", "", text, flags=re.M)
    made.eval(f"modules['{name}'] = (() => {{ {body}\n return {{ {', '.join(names)} }}; }})(); null")
    done.append(name)


def give(made, name: str, content: bytes) -> None:
    """Bytes of a file as an ArrayBuffer of this name."""
    put = f"(text) => {{ globalThis.{name} = Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer; return 0 }}"
    made.eval(f"globalThis.put = {put}; null")
    made.call("put", content.decode("latin-1"))
