"""Messages as data files write them: OpenAI's {role, content}, ShareGPT's {from, value}, typed parts, tool calls.

Each function takes what JSON gave and returns a record, or raises DataError with the reason.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import DataError
from posttrain.records import Message, ToolCall

_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant", "developer": "system", "observation": "tool", "function": "tool",
    "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Other libraries' names of the roles."""


def message(value: Any) -> Message:
    """One message from {role, content} or {from, value}; content may be a list of typed parts, calls may be apart."""
    if not isinstance(value, Mapping):
        raise DataError(f"a message is {kind_of(value)}, not an object with role and content")
    said = value.get("role") or value.get("from")
    if said is None:
        raise DataError(f"a message has the keys {', '.join(value) or 'none'}, but no role (or from)")
    role = _ROLES.get(said, said)
    content = value.get("content", value.get("value"))
    calls = tuple(_call(call) for call in value.get("tool_calls") or ())
    if said == "function_call":
        content, calls = "", (_call(content),)
    elif isinstance(content, list):
        content, more = _parts(content)
        calls += more
    elif content is None and calls:
        content = ""
    name = value.get("name")
    return Message(role, content, calls, name if isinstance(name, str) else None)


def transcript(text: str) -> tuple[Message, ...]:
    """A dialogue in one string, "\\n\\nHuman: ...\\n\\nAssistant: ...", as HH-RLHF writes it."""
    before, *rest = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not rest:
        raise DataError(
            "without a prompt column, chosen and rejected must be message lists or dialogues of the form "
            f"'\\n\\nHuman: ...\\n\\nAssistant: ...'; this text begins {text[:30]!r}"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], words.strip()) for who, words in zip(rest[::2], rest[1::2], strict=True))


def _parts(parts: Sequence[Any]) -> tuple[str, tuple[ToolCall, ...]]:
    """Content given as typed parts: text, reasoning and tool calls."""
    text, calls = "", ()
    for part in parts:
        value = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        match part.get("type") if isinstance(part, Mapping) else type(part).__name__:
            case "text" if isinstance(value, str):
                text += value
            case "reasoning" | "thinking" if isinstance(value, str):
                text += f"<think>\n{value}\n</think>\n\n"
            case "tool_call":
                calls += (_call(value),)
            case other:
                raise DataError(f"a message has a part of type {other!r}; only text, reasoning and tool_call are read")
    return text, calls


def _call(value: Any) -> ToolCall:
    """A tool call, as an object or as JSON text; OpenAI nests it under `function` and writes the arguments as text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        value = value.get("function") or value
        arguments = value.get("arguments") or {}
        return ToolCall(value["name"], json.loads(arguments) if isinstance(arguments, str) else arguments)
    except (json.JSONDecodeError, AttributeError, KeyError) as error:
        raise DataError(f"a tool call is not an object with name and arguments: {str(value)[:60]!r}") from error


def kind_of(value: Any) -> str:
    """The type of a value, for an error message."""
    return "missing" if value is None else f"a {type(value).__name__}"
