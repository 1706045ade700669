"""The book's server: files of the site, and the live lab on the same origin, to this machine alone.

    GET    /lab/ping                the experiments with their bounds, and the run under way
    POST   /lab/runs                {"experiment", "settings"} -> 201 {"id"}; 409 while one runs
    GET    /lab/runs/ID/events      events: "step" {"step", "metrics", "samples"}, at last "end" {"state", "why"}
    DELETE /lab/runs/ID             stop it

The socket is bound to the loopback interface. The lab answers only where the Host is ours (no other name that was made
to point here), the Origin, if there is one, is ours (no other page), and the request carries the token, which is in the
address that `posttrain book` prints: opening it sets a cookie that no script reads and no other site sends. A body is
small JSON; it names an experiment and values within its bounds. Answers are 403, 400, 404 or 409 with one line of why.
"""

import hmac
import json
import secrets
from functools import partial
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from posttrain.errors import ConfigError, RunError, nearest
from posttrain.live.experiments import EXPERIMENTS, Number
from posttrain.live.runs import Live, Runs

LONGEST = 4096
"""Bytes of a body."""
PATIENCE = 10.0
"""Seconds between signs of life in a stream of events, by which a closed page is noticed."""


class Server(ThreadingHTTPServer):
    """A site, a token, and the runs; closing it ends the run."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int):
        self.token = secrets.token_urlsafe(24)
        self.runs = Runs()
        super().__init__(("127.0.0.1", port), partial(Handler, directory=str(folder)))

    @property
    def names(self) -> tuple[str, str]:
        """What a browser may call us."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def address(self) -> str:
        """With the token, which opens the lab."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    def server_close(self) -> None:
        """Close the socket, and end what runs."""
        self.runs.stop("the server was closed")
        super().server_close()


class Handler(SimpleHTTPRequestHandler):
    """Files of the site, and /lab/; says nothing of requests that went well."""

    server: Server

    def do_GET(self):
        """A file, the token's cookie, or the lab."""
        at = urlsplit(self.path)
        token = parse_qs(at.query).get("token", [""])[0]
        if at.path.startswith("/lab/"):
            self._lab("GET", at.path)
        elif self._named() and token and hmac.compare_digest(token.encode(), self.server.token.encode()):
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("Location", "/" + at.path.lstrip("/"))
            secret = f"{self._cookie}={self.server.token}; Path=/lab/; HttpOnly; SameSite=Strict"
            self.send_header("Set-Cookie", secret)
            told = f"posttrain-lab-here-{self.server.server_port}=1; Path=/; SameSite=Strict"  # so that pages ask
            self.send_header("Set-Cookie", told)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def do_POST(self):
        """Start a run."""
        self._lab("POST", urlsplit(self.path).path)

    def do_DELETE(self):
        """Stop a run."""
        self._lab("DELETE", urlsplit(self.path).path)

    def log_request(self, code="-", size="-"):
        """Print failures alone."""
        if not str(getattr(code, "value", code)).startswith(("2", "3")):
            super().log_request(code, size)

    def log_message(self, format, *args):
        """Without the token, should it stand in the address."""
        super().log_message("%s", (format % args).replace(self.server.token, "..."))

    def end_headers(self):
        """A page that was built anew is seen at once; nobody frames it or guesses at types."""
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    # -- the lab ------------------------------------------------------------------------------------------------------

    @property
    def _cookie(self) -> str:
        return f"posttrain-lab-{self.server.server_port}"

    def _named(self) -> bool:
        """Whether the request was meant for us, by its Host and by its Origin."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.names:
            return False
        return origin is None or origin == f"http://{self.headers['Host']}"

    def _refused(self, method: str) -> str:
        """Why this request may not speak to the lab; empty if it may."""
        if not self._named():
            return "the lab answers only the book's own pages"
        if method != "GET" and self.headers.get("Origin") is None:
            return "the lab needs to know which page asks"
        try:
            sent = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            sent = None
        if sent is None or not hmac.compare_digest(sent.value.encode(), self.server.token.encode()):
            return "open the book by the address that `posttrain book` prints"
        return ""

    def _lab(self, method: str, path: str) -> None:
        self.close_connection = True  # what was not read of a body is not taken for a request
        why = self._refused(method)
        if why:
            return self._tell(HTTPStatus.FORBIDDEN, {"why": why})
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["ping"]:
                return self._tell(HTTPStatus.OK, self._known())
            case "POST", ["runs"]:
                return self._start()
            case "GET", ["runs", name, "events"] if live := self._live(name):
                return self._stream(live)
            case "DELETE", ["runs", name] if self._live(name):
                self.server.runs.stop()
                return self._tell(HTTPStatus.OK, {"stopped": name})
        return self._tell(
            HTTPStatus.NOT_FOUND, {"why": "the lab has no such thing; a run is known until the next begins"}
        )

    def _live(self, name: str) -> Live | None:
        last = self.server.runs.last
        return last if last and last.id == name else None

    def _known(self) -> dict[str, Any]:
        """The experiments, for a page's controls."""
        found = {}
        for name, e in EXPERIMENTS.items():
            settings = {
                key: {"default": s.default, "low": s.low, "high": s.high}
                if isinstance(s, Number)
                else {"default": s.default, "among": s.among}
                for key, s in e.settings.items()
            }
            found[name] = {"section": e.section, "says": e.says, "settings": settings}
        last = self.server.runs.last
        running = (
            {"id": last.id, "experiment": last.experiment, "settings": last.settings}
            if last and not last.over
            else None
        )
        return {"experiments": found, "running": running}

    def _start(self) -> None:
        try:
            asked = self._body()
            name, given = asked.get("experiment"), asked.get("settings", {})
            if not isinstance(name, str) or not isinstance(given, dict):
                raise ConfigError('the body is {"experiment": name, "settings": {name: value}}.')
            if name not in EXPERIMENTS:
                raise ConfigError(f'there is no experiment "{name[:40]}". {nearest(name[:40], EXPERIMENTS)}')
            settings = EXPERIMENTS[name].read(given)
        except ConfigError as error:
            return self._tell(HTTPStatus.BAD_REQUEST, {"why": str(error)})
        try:
            live = self.server.runs.start(name, settings)
        except RunError as error:
            return self._tell(HTTPStatus.CONFLICT, {"why": str(error)})
        return self._tell(HTTPStatus.CREATED, {"id": live.id, "experiment": name, "settings": settings})

    def _body(self) -> dict[str, Any]:
        """Small JSON. Raises ConfigError for anything else."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdigit() or int(length) > LONGEST:
            raise ConfigError(f"a body is application/json of at most {LONGEST} bytes, its length given.")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise ConfigError(f"the body is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError("the body is no JSON object.")
        return found

    def _stream(self, live: Live) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for item in live.follow(PATIENCE):
                if item is None:
                    self.wfile.write(b": still there\n\n")
                else:
                    number, event = item
                    kind = event["kind"]
                    rest = json.dumps({k: v for k, v in event.items() if k != "kind"})
                    self.wfile.write(f"id: {number}\nevent: {kind}\ndata: {rest}\n\n".encode())
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            return  # the page was closed; the run goes on, and can be followed again

    def _tell(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def server(folder: Path, port: int) -> Server:
    """A server of a built site on the loopback interface, not yet running. Raises RunError without site or port."""
    if not (folder / "index.html").exists():
        raise RunError(f"there is no built book in {folder}. In a checkout `make book` builds it, within a minute.")
    try:
        return Server(folder, port)
    except OSError as error:
        why = f"port {port} cannot be used: {error.strerror}. Take another with --port, or 0 for a free one."
        raise RunError(why) from error
