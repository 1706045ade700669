"""`posttrain book`: the book as a site, from this package or this checkout, to this machine alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import posttrain
from posttrain.cli.options import parse
from posttrain.errors import ConfigError, Interrupted
from posttrain.live.server import server

SITE = Path(posttrain.__file__).with_name("site")
"""Built by `make book`, and part of the wheel."""
_USAGE = "posttrain book [options]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serves the book to a browser on this machine, at an address on the loopback interface; Ctrl-C ends it. Pages
    opened by the printed address, which has a token, may start the short runs that the book offers, one at a time."""

    port: int = 8027
    """Port on 127.0.0.1; 0 takes a free one."""
    open: bool = False
    """Open the address in a browser as well."""

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port = {self.port}: a port is between 1 and 65535, or 0 for a free one")


def main(words: Sequence[str]) -> None:
    """Serve the book until Ctrl-C."""
    options = parse(Options, words, _USAGE)
    with server(SITE, options.port) as served:
        print(f"the book is at {served.address}\nCtrl-C ends it", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(served.address)
        try:
            served.serve_forever()
        except (KeyboardInterrupt, Interrupted):
            print()
