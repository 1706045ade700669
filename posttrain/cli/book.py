"""`posttrain book`: the book as a site, from this package or this checkout, to this machine alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import posttrain
from posttrain.cli.options import parse
from posttrain.errors import ConfigError, RunError

SITE = Path(posttrain.__file__).with_name("site")
"""Built by `make book`, and part of the wheel."""
_USAGE = "posttrain book [options]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serves the book to a browser on this machine, at an address on the loopback interface; Ctrl-C ends it."""

    port: int = 8027
    """Port on 127.0.0.1; 0 takes a free one."""
    open: bool = False
    """Open the address in a browser as well."""

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port = {self.port}: a port is between 1 and 65535, or 0 for a free one")


class Quiet(SimpleHTTPRequestHandler):
    """Files of the site; says nothing of requests that went well."""

    def log_request(self, code="-", size="-"):
        """Print failures alone."""
        if not str(code).startswith(("2", "3")):
            super().log_request(code, size)

    def end_headers(self):
        """A page that was built anew is seen at once."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a built site on the loopback interface, not yet running. Raises RunError without site or port."""
    if not (folder / "index.html").exists():
        raise RunError(f"there is no built book in {folder}. In a checkout `make book` builds it, within a minute.")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder)))
    except OSError as error:
        why = f"port {port} cannot be used: {error.strerror}. Take another with --port, or 0 for a free one."
        raise RunError(why) from error


def main(words: Sequence[str]) -> None:
    """Serve the book until Ctrl-C."""
    options = parse(Options, words, _USAGE)
    with server(SITE, options.port) as served:
        address = f"http://127.0.0.1:{served.server_port}/"
        print(f"the book is at {address}; Ctrl-C ends it", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)
        try:
            served.serve_forever()
        except KeyboardInterrupt:
            print()
