"""When a run of several processes stops: at the same step in all of them."""

from posttrain import dist
from posttrain.train.stopping import Stopping


def test_a_signal_during_the_question_counts_at_the_next(monkeypatch):
    """The others have answered already; whoever left now would let them wait for ever."""
    stop = Stopping()

    def all_max(mine):
        stop._reason = "stopped by SIGTERM"  # the handler runs while this process waits
        return mine

    monkeypatch.setattr(dist, "all_max", all_max)
    assert stop.reason(1) is stop.reason(1) is None  # the one who asks twice in a step is told the same
    assert stop.reason(2) == stop.reason(2) == "stopped by SIGTERM"


def test_a_stop_elsewhere_is_a_stop_here(monkeypatch):
    monkeypatch.setattr(dist, "all_max", lambda mine: 1)
    stop = Stopping()
    assert stop.reason(1) == stop.reason(2) == "stopped with another process"
