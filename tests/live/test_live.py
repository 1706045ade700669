"""The live lab: who may ask, what may be asked, one run at a time, events as they come, and an end for everything."""

import time

import pytest

from posttrain.errors import ConfigError, RunError
from posttrain.live import runs
from posttrain.live.experiments import EXPERIMENTS, Choice
from posttrain.live.run import Lines


def test_a_run_from_start_to_end(lab):
    status, said, _ = lab.ask("GET", "/lab/ping", Origin=None)
    assert status == 200 and said["running"] is None
    assert said["experiments"]["toy"]["settings"]["steps"] == {"default": 3, "low": 1, "high": 50}
    run = lab.start()
    events = lab.events(run)
    assert [kind for kind, _ in events] == ["step", "step", "step", "end"]
    assert events[1][1] == {"step": 1, "metrics": {"reward_mean": 0.1}, "samples": []}
    assert events[-1][1] == {"state": "done"}
    assert lab.events(run) == events, "who comes later is told all of it"
    again = lab.start(steps=1)
    assert again != run and lab.ask("GET", f"/lab/runs/{run}/events")[0] == 404


def test_one_run_at_a_time_and_it_can_be_stopped(lab):
    run = lab.start(pause=60.0)
    status, said, _ = lab.ask("POST", "/lab/runs", {"experiment": "toy"})
    assert status == 409 and "one run at a time" in said["why"]
    assert lab.ask("GET", "/lab/ping")[1]["running"]["id"] == run
    process = lab.served.runs.last.process
    assert lab.ask("DELETE", f"/lab/runs/{run}")[:2] == (200, {"stopped": run})
    assert process.poll() is not None
    assert lab.events(run)[-1] == ("end", {"state": "stopped", "why": "stopped"})
    assert lab.events(lab.start(steps=1))[-1][1]["state"] == "done"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": None},
        {"Cookie": None},
        {"Cookie": "posttrain-lab-{port}=guess"},
        {"Cookie": "posttrain-lab-1={token}"},
        {"Cookie": "posttrain-lab-{port}=\u00e9"},
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"},
        {"Host": "127.0.0.1"},
    ],
    ids=str,
)
def test_strangers_are_refused(lab, headers):
    known = {"port": lab.served.server_port, "token": lab.served.token}
    headers = {k: v and v.format(**known).encode("latin-1").decode("latin-1") for k, v in headers.items()}
    for method, path in (
        ("POST", "/lab/runs"),
        ("DELETE", "/lab/runs/1"),
        ("GET", "/lab/ping"),
        ("GET", "/lab/runs/1/events"),
    ):
        if method == "GET" and headers == {"Origin": None}:
            continue  # a browser sends none with a page's own reading
        status, said, _ = lab.ask(method, path, {"experiment": "toy"} if method == "POST" else None, **headers)
        assert status == 403 and said["why"], (method, path)
    assert lab.served.runs.last is None


@pytest.mark.parametrize(
    "body, said",
    [
        ({"experiment": "toy", "settings": {"steps": 51}}, "steps = 51: it is a whole number from 1 to 50"),
        ({"experiment": "toy", "settings": {"steps": 0}}, "from 1 to 50"),
        ({"experiment": "toy", "settings": {"steps": 2.5}}, "whole number"),
        ({"experiment": "toy", "settings": {"steps": True}}, "whole number"),
        ({"experiment": "toy", "settings": {"steps": "3"}}, "whole number"),
        ({"experiment": "toy", "settings": {"pause": float("nan")}}, "a number from 0 to 60"),
        ({"experiment": "toy", "settings": {"lr": 1}}, 'no setting "lr"'),
        ({"experiment": "toy", "settings": {"folder": "/etc"}}, 'no setting "folder"'),
        ({"experiment": "toys", "settings": {}}, 'no experiment "toys". Did you mean "toy"'),
        ({"experiment": ["toy"]}, "the body is"),
        ({"experiment": "toy", "settings": []}, "the body is"),
        ([], "no JSON object"),
        ("{", "no JSON"),
        ("x" * 5000, "at most 4096 bytes"),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(lab, body, said):
    status, answer, _ = lab.ask("POST", "/lab/runs", body)
    assert status == 400 and said in answer["why"]
    assert lab.served.runs.last is None


def test_a_form_of_another_page_is_no_request(lab):
    body = {"experiment": "toy"}
    assert lab.ask("POST", "/lab/runs", body, **{"Content-Type": "text/plain"})[0] == 400
    assert lab.ask("GET", "/lab/runs", None)[0] == 404
    assert lab.ask("POST", "/lab/ping", body)[0] == 404
    assert lab.ask("DELETE", "/lab/runs/0123456789abcdef")[0] == 404


def test_a_run_that_breaks_says_why(lab):
    assert lab.events(lab.start("broken"))[-1] == ("end", {"state": "failed", "why": "no such luck\n"})


def test_a_run_ends_in_its_time(lab):
    state, why = lab.events(lab.start("slow", pause=60.0))[-1][1].values()
    assert state == "stopped" and "after 1 seconds" in why


def test_the_run_ends_with_the_server(tmp_path, lab):
    lab.start(pause=60.0)
    process = lab.served.runs.last.process
    lab.served.server_close()
    assert process.poll() is not None


def test_the_run_ends_where_its_server_was_killed(lab):
    """Nothing tells it; its input ends."""
    lab.start(pause=60.0)
    process = lab.served.runs.last.process
    process.stdin.close()
    assert process.wait(10) == 1


def test_the_token_is_in_the_address_alone(lab, capfd):
    path = lab.served.address.removeprefix(lab.own)
    status, _, headers = lab.ask("GET", path, Cookie=None, Origin=None)
    assert status == 303 and headers["Location"] == "/"
    secret, told = headers.get_all("Set-Cookie")
    assert (
        lab.served.token in secret and "HttpOnly" in secret and "SameSite=Strict" in secret and "Path=/lab/" in secret
    )
    assert lab.served.token not in told
    assert "Access-Control-Allow-Origin" not in headers
    assert lab.ask("GET", "/?token=guess", Cookie=None)[:2] == (200, "the book")
    assert lab.ask("GET", f"//evil.example/?token={lab.served.token}")[2]["Location"] == "/evil.example/"
    assert lab.ask("GET", path, Host="evil.example", Origin=None)[0] == 200, "a page, without the cookie"
    assert lab.ask("GET", f"/none?x={lab.served.token}")[0] == 404
    assert lab.served.token not in capfd.readouterr().err


def test_lines_of_a_growing_file(tmp_path):
    lines = Lines(tmp_path / "grows")
    assert list(lines.new()) == []
    (tmp_path / "grows").write_text('{"a": 1}\n{"a"')
    assert list(lines.new()) == [{"a": 1}]
    (tmp_path / "grows").write_text('{"a": 1}\n{"a": 2}\n')
    assert list(lines.new()) == [{"a": 2}] and list(lines.new()) == []


# --- the real experiments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_declared_is_bounded(name):
    e = EXPERIMENTS[name]
    assert e.section.isdigit() and e.says and 0 < e.seconds <= 600 and "steps" in e.settings
    for key, s in e.settings.items():
        assert s.read(key, s.default) == s.default
        for bad in (None, [], {}, "x", float("inf"), 1e9, -1e9):
            with pytest.raises(ConfigError):
                s.read(key, bad)
        assert isinstance(s, Choice) or s.low <= s.default <= s.high


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "pressure"])
def test_an_experiment_tells_its_steps(name, monkeypatch):
    """In a process of its own, as from a page."""
    lab = runs.Runs()
    live = lab.start(name, EXPERIMENTS[name].read({"steps": 1}))
    with pytest.raises(RunError, match="one run at a time"):
        lab.start(name, EXPERIMENTS[name].read({"steps": 1}))
    events = [item[1] for item in live.follow(300.0) if item]
    assert [e["kind"] for e in events] == ["step", "end"], events
    step = events[0]
    assert set(step["metrics"]) >= set(EXPERIMENTS[name].metrics) and len(step["samples"]) == 8
    assert step["samples"][0]["prompt"] and set(step["samples"][0]) >= {"answer", "reward", "length"}
    assert events[1]["state"] == "done"
    assert name != "leash" or abs(step["metrics"]["kl"]) < 1e-3, "the first answers are the reference's own"


@pytest.mark.slow
def test_pressure_tells_gold_besides():
    live = runs.Runs().start("pressure", EXPERIMENTS["pressure"].read({"steps": 2}))
    events = [item[1] for item in live.follow(600.0) if item]
    assert [e["kind"] for e in events] == ["step", "step", "end"], events
    assert all("gold" in e["metrics"] for e in events[:-1])


def test_stopping_a_real_run():
    lab = runs.Runs()
    live = lab.start("resampled", EXPERIMENTS["resampled"].read({"steps": 60}))
    time.sleep(0.2)
    lab.stop()
    assert [item[1] for item in live.follow(60.0) if item][-1]["state"] == "stopped"
    assert live.process.poll() is not None
