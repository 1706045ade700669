"""Text to token ids and back, from the tokenizer files of a Hugging Face model folder.

A thin layer over the `tokenizers` library that adds what post-training must know: which ids stop a generation, whether
a BOS is customary, which chat template came with the model. Its one policy: text is data. A string that spells a
special token ("<|end|>" inside a user's message) becomes ordinary tokens unless the caller says `special=True`, so
nobody can write a turn boundary into a conversation. No BOS or EOS is ever added here; the renderer in `posttrain.chat`
decides that, once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from posttrain.errors import ModelError

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The special tokens that Hugging Face files give a role."""


class Tokenizer:
    """A tokenizer with its special tokens, chat template and stop ids. Immutable but for caches."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        stop_ids: Iterable[int] = (),
        config: Mapping[str, Any] | None = None,
    ):
        """backend: the `tokenizers` object.
        special_tokens: role to text, such as {"eos_token": "<|endoftext|>"}; each text must be in the vocabulary.
        chat_template: Jinja source, or None for a model that has none.
        stop_ids: ids that end a generation, besides the EOS.
        config: other content of tokenizer_config.json, kept for `save`.
        """
        backend.no_padding()
        backend.no_truncation()
        self.special_tokens = dict(special_tokens or {})
        for role, text in self.special_tokens.items():
            if backend.token_to_id(text) is None:
                raise ModelError(
                    f"the tokenizer's {role} is {text!r}, which is not in its vocabulary. tokenizer_config.json and "
                    "tokenizer.json come from different models; copy both from the same one"
                )
        self.chat_template = chat_template
        self.config = dict(config or {})
        self._marked = backend  # reads special strings as special ids
        own_eos = () if self.eos_id is None else (self.eos_id,)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*stop_ids, *own_eos)))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read tokenizer.json and, where present, the files beside it. Raises ModelError where they are unusable."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(_no_tokenizer(folder))
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}. Download the file again") from error
        config = _json(folder / "tokenizer_config.json")
        ids = _json(folder / "config.json")
        generation = _json(folder / "generation_config.json")
        special = _special_tokens(config | _json(folder / "special_tokens_map.json"), ids, backend)
        return cls(backend, special, _chat_template(folder, config), _stop_ids(generation, ids), config)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers' AutoTokenizer reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._marked.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config, **self.special_tokens}
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template)

    def with_chat(self, chat_template: str | None, stop_ids: Iterable[int] = ()) -> "Tokenizer":
        """The same tokenizer with another chat template; `stop_ids` come before those it has."""
        return Tokenizer(self._marked, self.special_tokens, chat_template, (*stop_ids, *self.stop_ids), self.config)

    def encode(self, text: str, special: bool = False, *, goes_on: bool = False) -> list[int]:
        """Token ids of `text`, without BOS or EOS.

        goes_on: the text follows other text, so a tokenizer that puts a space before every text (SentencePiece's
            dummy prefix: Llama 2, Mistral, TinyLlama) must not do so here.
        special: read strings like "<|end|>" as the special tokens they spell. Only for text that the program wrote
            itself. Added tokens that are not marked special ("<think>" of Qwen) are recognised either way.
        """
        backend = self._marked if special else self._inside if goes_on else self._plain
        return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`. skip_special leaves out special tokens."""
        return self._marked.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, name: str) -> int | None:
        """Id of the token that is spelled exactly so, or None."""
        return self._marked.token_to_id(name)

    def token(self, index: int) -> str | None:
        """How the vocabulary spells an id (byte-level pieces show their byte alphabet), or None."""
        return self._marked.id_to_token(index)

    @property
    def bos_id(self) -> int | None:
        return self._role("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._role("eos_token")

    @property
    def pad_id(self) -> int:
        """Id that fills rows: the pad token, else EOS, else 0. Masks are explicit, so sharing EOS hides nothing."""
        for role in ("pad_token", "eos_token"):
            if (index := self._role(role)) is not None:
                return index
        return 0

    @cached_property
    def adds_bos(self) -> bool:
        """True where the tokenizer's own post-processor begins every text with the BOS, as its base model expects."""
        ids = self._marked.encode("a", add_special_tokens=True).ids
        return self.bos_id is not None and bool(ids) and ids[0] == self.bos_id

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; an embedding must have at least this many rows."""
        return max(self._marked.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def marks(self) -> dict[str, int]:
        """The special tokens, text to id: what user text must not be able to spell."""
        added = self._marked.get_added_tokens_decoder().items()
        return {token.content: index for index, token in added if token.special}

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A second backend that spells special strings out. A copy, not a toggled flag: encoding may be threaded."""
        plain = tokenizers.Tokenizer.from_str(self._marked.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """A backend for text within a text: `_plain` itself, unless that puts a space before all it gets."""
        state = json.loads(self._plain.to_str())
        bare = state | {part: _without_prefix(state[part]) for part in ("normalizer", "pre_tokenizer")}
        if bare == state:
            return self._plain
        inside = tokenizers.Tokenizer.from_str(json.dumps(bare))
        inside.encode_special_tokens = True
        return inside

    def text_ends(self, ids: Sequence[int]) -> bool:
        """Whether nothing, or a special token, stands last in `ids`: what follows is the beginning of a text."""
        return not ids or ids[-1] in self._mark_ids

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        return frozenset(self.marks.values())

    def _role(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self._marked.token_to_id(text)


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser, in tokenizer.json's form, that puts nothing before its text."""
    match part:
        case {"type": "Sequence"}:
            lists = {key: [_without_prefix(p) for p in value] for key, value in part.items() if isinstance(value, list)}
            return part | {key: [p for p in value if p is not None] for key, value in lists.items()}
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return part | {"add_prefix_space": False}
    return part


def _no_tokenizer(folder: Path) -> str:
    """What to say of a folder without tokenizer.json."""
    if not folder.is_dir():
        return f"{folder} is not a folder, so no tokenizer can be read from it. Name a model folder"
    other = [name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / name).exists()]
    if other:
        return (
            f"{folder} holds {other[0]} but no tokenizer.json, the only format read here. Convert it once, with "
            'transformers and sentencepiece installed: python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    return (
        f"{folder} has no tokenizer.json. Copy tokenizer.json and tokenizer_config.json from the model that these "
        "weights came from"
    )


def _json(path: Path) -> dict[str, Any]:
    """An object from a file that may be absent."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Download the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__} where a JSON object belongs. Download the file again")
    return value


def _special_tokens(names: Mapping[str, Any], ids: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Role to text. A name is a string or an object with `content`; config.json's ids fill what is missing."""
    found = {}
    for role in NAMED:
        value = names.get(role)
        if isinstance(value, Mapping):
            value = value.get("content")
        if role not in names and isinstance(index := ids.get(f"{role}_id"), int):  # an explicit null stays null (Qwen)
            value = backend.id_to_token(index)
        if value is not None:
            found[role] = str(value)
    return found


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The Jinja source: its own file wins over tokenizer_config.json, whose entry may be a list of named templates."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        if "default" not in named:
            raise ModelError(
                f"{folder}/tokenizer_config.json has the chat templates {', '.join(named)} and none called default. "
                "Write the one you want to chat_template.jinja in that folder"
            )
        return named["default"]
    return value


def _stop_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Every eos_token_id of the configs, in order: a chat model stops at its turn end and at its document end."""
    found: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(found))
