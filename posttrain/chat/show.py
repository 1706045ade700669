"""A segment for a person: the text of its tokens, coloured by what is learned. `posttrain data show` prints it."""

from itertools import groupby

from rich.markup import escape

from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Segment

LEARNED = ("black on green", "black on bright_green")
CONTEXT = "dim"


def paint(segment: Segment, tokenizer: Tokenizer, *, every_token: bool = False) -> str:
    """Rich markup: learned text on green, context dim, and a line that counts both.

    every_token: two greens in turn, so that the borders of learned tokens are seen; otherwise one patch per stretch. A
        newline shows as ⏎ before it breaks the line, since a template's newline is a token like any other.
    """
    parts, place = [], 0
    for learned, stretch in groupby(range(len(segment.tokens)), key=lambda t: segment.mask[t]):
        indices = list(stretch)
        pieces = [[i] for i in indices] if learned and every_token else [indices]
        for piece in pieces:
            text = tokenizer.decode(segment.tokens[i] for i in piece)
            colour = LEARNED[place % 2] if learned else CONTEXT
            place += every_token
            parts.append(f"[{colour}]{escape(text.replace(chr(10), '⏎' + chr(10)))}[/]")
    count = f"{sum(segment.mask)} of {len(segment.tokens)} tokens are learned"
    cut = f"; {segment.truncated} were cut off" if segment.truncated else ""
    return "".join(parts) + f"\n[italic]{count}{cut}[/]"
