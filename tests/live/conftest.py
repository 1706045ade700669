"""A server of the book with toy experiments: they count, as slowly as they are told to."""

import http.client
import json
import sys
import threading

import pytest

from posttrain.live import runs, server
from posttrain.live.experiments import Experiment, Number

CHILD = """
import json, sys, threading, os, time
name, folder = sys.argv[-2:]
settings = json.loads(sys.stdin.readline())
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
if name == "broken":
    sys.exit("no such luck")
for step in range(settings["steps"]):
    print(json.dumps({"kind": "step", "step": step, "metrics": {"reward_mean": step / 10}, "samples": []}), flush=True)
    time.sleep(settings["pause"])
print(json.dumps({"kind": "end", "state": "done"}), flush=True)
"""
TOY = {"steps": Number(3, 1, 50), "pause": Number(0.0, 0.0, 60.0)}


class Lab:
    """A browser, as far as it matters here."""

    def __init__(self, served: server.Server):
        self.served = served
        self.own = f"http://127.0.0.1:{served.server_port}"
        self.cookie = f"posttrain-lab-{served.server_port}={served.token}"

    def ask(self, method: str, path: str, body=None, **headers):
        """Status, body, headers."""
        sent = {"Origin": self.own, "Cookie": self.cookie, "Content-Type": "application/json"} | headers
        link = http.client.HTTPConnection("127.0.0.1", self.served.server_port, timeout=20)
        text = body if isinstance(body, str | None) else json.dumps(body)
        link.request(method, path, text, {k: v for k, v in sent.items() if v is not None})
        answer = link.getresponse()
        text = answer.read().decode()
        link.close()
        kind = answer.headers.get_content_type()
        return answer.status, json.loads(text) if kind == "application/json" else text, answer.headers

    def start(self, experiment="toy", **settings) -> str:
        """The id of a run that began."""
        status, said, _ = self.ask("POST", "/lab/runs", {"experiment": experiment, "settings": settings})
        assert status == 201, said
        return said["id"]

    def events(self, run: str) -> list[tuple[str, dict]]:
        """All events of a run, after its end."""
        _, text, headers = self.ask("GET", f"/lab/runs/{run}/events", Origin=None)
        assert headers["Content-Type"] == "text/event-stream"
        found = [dict(line.split(": ", 1) for line in piece.split("\n")) for piece in text.strip().split("\n\n")]
        assert [int(f["id"]) for f in found] == list(range(len(found)))
        return [(f["event"], json.loads(f["data"])) for f in found]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A server of a site of one page, and toy experiments in the place of the real ones."""
    (tmp_path / "index.html").write_text("the book")
    (tmp_path / "child.py").write_text(CHILD)
    toy = {"section": "99", "says": "counts", "settings": TOY, "run": lambda settings, folder: None, "metrics": ()}
    known = {"toy": Experiment(**toy), "broken": Experiment(**toy), "slow": Experiment(**toy, seconds=1)}
    for module in (runs, server):
        monkeypatch.setattr(module, "EXPERIMENTS", known)
    real = runs.subprocess.Popen

    def popen(command, **how):
        if "posttrain.live.run" in command:
            command = [sys.executable, str(tmp_path / "child.py"), *command[-2:]]
        return real(command, **how)

    monkeypatch.setattr(runs.subprocess, "Popen", popen)
    with server.server(tmp_path, 0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield Lab(served)
        served.shutdown()
