"""Chat templates as values: what stands before and after each role's words, and which token ends a turn.

A built-in `Template` is a table of strings, encoded piece by piece in `encode.py`, so masks are exact and a longer
conversation extends a shorter one. A `JinjaTemplate` runs the template that came with a Hugging Face model, sandboxed,
with the functions such templates call; it can write anything, so what it wrote is checked afterwards. Section 05 of the
book shows one conversation under each of them.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from posttrain.errors import ConfigError, DataError, ModelError, nearest
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message, ToolCall


@dataclass(frozen=True)
class Turn:
    """What stands before and after the words of one role. A string of the form <|name|> is one special token."""

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template that is a table. The assistant's `before` is the generation prompt; its words are what is learned."""

    name: str
    turns: Mapping[str, Turn]
    """One entry per role. The assistant's `after` begins with the first stop token."""
    stop: tuple[str, ...]
    """Tokens that end a turn. The first closes every assistant turn and is learned; others, where the tokenizer has
    them, only end a generation."""
    lead: str = ""
    """Put before the assistant's words, as a part of them: base models write "A: 4" with the space in the answer."""

    def __post_init__(self):
        if not self.stop or not self.turns["assistant"].after.startswith(self.stop[0]):
            raise ConfigError(
                f'the template "{self.name}" does not close the assistant\'s turn with its first stop token '
                f'{self.stop[:1]}; a model trained on it would never stop. Let turns["assistant"].after begin with it'
            )

    @property
    def jinja(self) -> str:
        """The same template as Jinja source, so that other programs serve the model as it was trained."""
        arms = []
        for role, turn in self.turns.items():
            words = _quote(self.lead) + " + message['content']" if role == "assistant" else "message['content']"
            calls = _CALLS_SOURCE if role == "assistant" else ""
            body = f"{{{{ {_quote(turn.before)} + {words} }}}}{calls}{{{{ {_quote(turn.after)} }}}}"
            arms.append(f"{'if' if not arms else 'elif'} message['role'] == '{role}' %}}{body}")
        start = _quote(self.turns["assistant"].before)
        return (
            "{% for message in messages %}{% "
            + "{% ".join(arms)
            + "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}{% endfor %}"
            + f"{{% if add_generation_prompt %}}{{{{ {start} }}}}{{% endif %}}"
        )


def call_text(calls: Sequence[ToolCall]) -> str:
    """Tool calls as our templates write them: one <tool_call>{"name": ..., "arguments": ...}</tool_call> each."""
    return "".join(
        f"<tool_call>{json.dumps({'name': c.name, 'arguments': dict(c.arguments)}, ensure_ascii=False)}</tool_call>"
        for c in calls
    )


_CALLS_SOURCE = (
    "{% for call in message['tool_calls'] or [] %}{% set f = call['function'] or call %}"
    '<tool_call>{{ {"name": f["name"], "arguments": f["arguments"]} | tojson }}</tool_call>{% endfor %}'
)


def _quote(text: str) -> str:
    """A Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


POSTTRAIN = Template(
    name="posttrain",
    turns={role: Turn(f"<|{role}|>", "<|end|>") for role in ("system", "user", "assistant", "tool")},
    stop=("<|end|>",),
    lead=" ",
)
"""The house template: one special token opens a turn, one ends it. The assistant's words begin with a space, as words
within a text do: " Mira" in an answer is then the same token as in the question, and a small model can copy it."""

PLAIN = Template(
    name="plain",
    turns={
        "system": Turn("", "\n\n"),
        "user": Turn("Q: ", "\n"),
        "assistant": Turn("A:", "<|endoftext|>"),
        "tool": Turn("T: ", "\n"),
    },
    stop=("<|endoftext|>",),
    lead=" ",
)
"""How one asks a base model, which knows documents and no turns: Q: ... A: ..., then the end of the document."""

CHATML = Template(
    name="chatml",
    turns={role: Turn(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant", "tool")},
    stop=("<|im_end|>", "<|endoftext|>"),
)
"""ChatML as Qwen writes it. The newline after a turn belongs to nobody and is not learned."""

TEMPLATES: dict[str, Template] = {template.name: template for template in (POSTTRAIN, PLAIN, CHATML)}


@dataclass(frozen=True, kw_only=True)
class JinjaTemplate:
    """A template in Jinja, as Hugging Face stores it with a tokenizer."""

    source: str
    name: str = "jinja"
    stop: tuple[str, ...] = ()
    """Tokens that end a turn. Empty: the tokenizer's stop ids (generation_config.json, config.json, its EOS)."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the template, such as {"enable_thinking": False} or {"tools": [...]}."""
    today: date = date(2024, 7, 26)
    """What `strftime_now` reports. Fixed, so that a run that passes midnight does not change its data."""

    def text(self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, generate: bool) -> str:
        """The conversation as text; `generate` adds the header of an assistant turn.

        messages: as Hugging Face templates read them, see `as_dict`.
        Raises DataError where the template refuses the conversation, ModelError where the template itself is broken.
        """
        try:
            return _compiled(self.source).render(
                {
                    "messages": list(messages),
                    "add_generation_prompt": generate,
                    "strftime_now": lambda pattern: self.today.strftime(pattern),
                    **tokenizer.special_tokens,
                    **self.variables,
                }
            )
        except _Refused as refusal:
            raise DataError(f'the chat template "{self.name}" refuses this conversation: {refusal}') from None
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f'the chat template "{self.name}" is not valid Jinja (line {error.lineno}): {error.message}. Choose a '
                "built-in template, or correct chat_template.jinja in the model's folder"
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f'the chat template "{self.name}" failed with {type(error).__name__}: {error}. It may need a variable '
                "that was not given (see JinjaTemplate.variables), or cannot render these roles"
            ) from error


def as_dict(message: Message) -> dict[str, Any]:
    """A message as Hugging Face templates read it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        plain["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.calls
        ]
    if message.name is not None:
        plain["name"] = message.name
    return plain


def choose(name: str, tokenizer: Tokenizer) -> Template | JinjaTemplate:
    """The template called `name`; "auto" is the one stored with the tokenizer.

    Raises ConfigError for an unknown name and ModelError where "auto" finds no template.
    """
    if name in TEMPLATES:
        return fitted(TEMPLATES[name], tokenizer)
    if name != "auto":
        raise ConfigError(f'there is no chat template "{name}". {nearest(name, [*TEMPLATES, "auto"])}')
    if tokenizer.chat_template is None:
        raise ModelError(
            'template = "auto" means the one stored with the model, and this model has none. Name a template: "plain" '
            'asks a base model in Q: and A:, "posttrain" and "chatml" need their special tokens in the vocabulary. '
            'Plain text needs none: data.kind = "text" trains on it, `posttrain sample --raw` continues it'
        )
    for template in (fitted(t, tokenizer) for t in TEMPLATES.values()):
        if tokenizer.chat_template == stored(template, tokenizer):
            return template
    return JinjaTemplate(source=tokenizer.chat_template, name="of the model")


def fitted(template: Template, tokenizer: Tokenizer) -> Template:
    """The template for a vocabulary: where "plain" ends documents in <|endoftext|>, others have an EOS of their own."""
    eos = tokenizer.special_tokens.get("eos_token")
    if template.name != PLAIN.name or eos is None or tokenizer.token_id(template.stop[0]) is not None:
        return template
    turn = template.turns["assistant"]
    closed = replace(turn, after=eos + turn.after.removeprefix(template.stop[0]))
    return replace(template, stop=(eos,), turns={**template.turns, "assistant": closed})


def stored(template: Template | JinjaTemplate, tokenizer: Tokenizer) -> str:
    """The Jinja source to keep beside a model: what it was trained under, so with the BOS that its tokenizer adds."""
    if isinstance(template, JinjaTemplate):
        return template.source
    return ("{{ bos_token }}" if tokenizer.adds_bos else "") + template.jinja


class _Refused(Exception):
    """A template called raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """Accepts {% generation %} ... {% endgeneration %}, with which some templates mark the assistant's words.

    The marks are read and ignored: masks come from our own rendering, which also works for templates without them.
    """

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 asks for

    def parse(self, parser):
        parser.stream.skip()
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str):
    raise _Refused(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON without Jinja's HTML escapes and sorting, as templates for language models expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """Template code comes with a downloaded model: it runs in a sandbox that can call nothing and change nothing."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _refuse
    return env.from_string(source)
