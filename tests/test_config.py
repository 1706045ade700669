"""Configurations say no, all at once and with advice; what they resolve to reads back equal."""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posttrain.config import diff, load, to_toml, user_files
from posttrain.errors import ConfigError
from posttrain.schema import docs, type_text


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Bounds."""

    kind: Literal["min", "weight", "none"] = "min"
    """How to cut."""
    low: float | None = 0.2
    """Lower edge; none: no lower edge."""
    high: float = 0.2
    """Upper edge. The second sentence.

    A second paragraph."""

    def __post_init__(self):
        if self.high <= 0:
            raise ConfigError(f"clip.high = {self.high}: the upper edge must be positive")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is maximised."""

    ratio: Literal["none", "token", "sequence"] = "token"
    """Importance ratio."""
    clip: Clip = Clip()
    """How far the ratio may move."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """One summand."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """A method.

    More about it.
    """

    PRESETS: ClassVar = {
        "objective": {"dapo": Objective(clip=Clip(high=0.28)), "cispo": Objective(clip=Clip(kind="weight", low=None))}
    }

    model: str
    """Where to start."""
    steps: int = field(default=100, metadata={"may_change": True})
    """How long."""
    lr: float = 1e-4
    """How fast."""
    shuffle: bool = True
    """Whether to shuffle."""
    tasks: tuple[str, ...] = ("math",)
    """What on."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's."""
    out: Path | None = None
    """Where to."""
    top_k: Literal[0, 10, 50] = 0
    """Cut."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Per task."""
    rewards: tuple[Reward, ...] = ()
    """Summands."""
    objective: Objective = Objective()
    """The objective."""
    teacher: Clip | None = None
    """An optional table."""

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError("steps must be at least 1")


def get(*words, path=None):
    return load(Config, path, ["--model", "base", *words])


def refusal(*words, path=None):
    with pytest.raises(ConfigError) as caught:
        get(*words, path=path)
    return str(caught.value)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_form_of_a_flag():
    one = get("--objective.clip.high", "0.3", "--no-shuffle", "--top-k", "10", "--tasks", "a,b", "--out", "x/y")
    two = get("--objective.clip.high=0.3", "--shuffle", "false", "--top_k=10", '--tasks=["a", "b"]', "--out=x/y")
    assert one == two
    assert one.objective.clip.high == 0.3 and one.tasks == ("a", "b") and one.out == Path("x/y")
    assert one.shuffle is False and one.top_k == 10
    assert get("--shuffle").shuffle is True and get("--shuffle", "--steps", "3").steps == 3


def test_words_without_a_flag_fill_positional_fields():
    words = ["base", "--no-shuffle", "a,b", "-n", "3", "c"]

    @dataclass(frozen=True, kw_only=True)
    class Options:
        model: str
        shuffle: bool = True
        n: int = 1
        tasks: tuple[str, ...] = ()

    cfg = load(Options, None, words, positional=("model", "tasks"))
    assert cfg == Options(model="base", shuffle=False, n=3, tasks=("a,b", "c"))
    with pytest.raises(ConfigError, match='"c" is not a flag'):
        load(Options, None, ["base", "c"], positional=("model",))


def test_values_of_every_type():
    cfg = get("--steps", "1e3", "--lr=3e-5", "--betas=0.8,0.9", "--weights.math=2", "--objective.clip.low=none",
              '--rewards=[{name = "right", weight = 2}, {name = "short"}]', "--teacher.high=0.5")  # fmt: skip
    assert cfg.steps == 1000 and type(cfg.steps) is int and cfg.lr == 3e-5
    assert cfg.betas == (0.8, 0.9) and cfg.weights == {"math": 2.0} and cfg.objective.clip.low is None
    assert cfg.rewards == (Reward(name="right", weight=2.0), Reward(name="short"))
    assert cfg.teacher == Clip(high=0.5) and get("--teacher", "none").teacher is None
    assert get("--tasks=").tasks == () and get("--lr", "-1").lr == -1.0


def test_the_file_comes_first_and_flags_second(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('steps = 7\nlr = 1\ntop-k = 50\n[objective.clip]\nhigh = 0.4\nkind = "weight"\n')
    cfg = load(Config, None, ["--config", str(path), "--model=m", "--objective.clip.high", "0.5"])
    assert (cfg.steps, cfg.lr, cfg.top_k) == (7, 1.0, 50)
    assert cfg.objective.clip == Clip(high=0.5, kind="weight")
    assert cfg == load(Config, path, ["--model=m", "--objective.clip.high", "0.5"])


def test_a_preset_comes_first_wherever_it_stands(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('preset = "dapo"\n[objective.clip]\nlow = 0.1\n')
    assert get(path=path).objective.clip == Clip(low=0.1, high=0.28)
    assert get("--preset", "CISPO", path=path).objective.clip == Clip(kind="weight", low=0.1)
    assert get("--objective.clip.high=0.3", "--preset=cispo").objective.clip == Clip(kind="weight", low=None, high=0.3)
    assert get("--objective.ratio=none", "--preset=dapo").objective == Objective(ratio="none", clip=Clip(high=0.28))


# -- refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--objectiv.clip.high=1"],
         '--objectiv.clip.high: there is no such field. Did you mean "objective.clip.high"?'),
        (["--high", "1"], '--high: there is no such field. Did you mean "objective.clip.high"?'),
        (["--objective.ratio", "seq"], 'objective.ratio = "seq" is not one of "none", "token", "sequence".'),
        (["--objective.ratio=sequnce"],
         'objective.ratio = "sequnce" is not one of "none", "token", "sequence". Did you mean "sequence"?'),
        (["--steps", "1.5"], 'steps = "1.5" is not a whole number'),
        (["--lr", "fast"], 'lr = "fast" is not a number'),
        (["--shuffle=maybe"], 'shuffle = "maybe" is not true or false'),
        (["--objective.clip.low=x"], 'objective.clip.low = "x" is not a number (or "none")'),
        (["--betas", "1,2,3"], 'betas = "1,2,3" needs exactly 2 entries'),
        (["--lr"], "--lr needs a value"),
        (["lr=3"], '"lr=3" is not a flag: write --field value or --field=value'),
        (["--objective.clip.high=0"], "objective.clip.high = 0.0: the upper edge must be positive"),
        (["--teacher.high=0"], "teacher: clip.high = 0.0: the upper edge must be positive"),
        (["--preset", "dappo"], 'preset = "dappo" does not exist. Did you mean "dapo"?'),
        (["--objective=dapo"], 'objective = "dapo" cannot be read; write it as in TOML, such as [1, 2] or {a = 1}'),
        (["--rewards=[{weight = 2}]"], 'rewards = "[{weight = 2}]" does not fit: name is required'),
        (["--config", "none.toml"], "cannot read the config file none.toml: No such file or directory"),
    ],
)  # fmt: skip
def test_a_problem_is_told_with_advice(words, message):
    assert refusal(*words) == message


def test_all_problems_are_told_at_once(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('stepss = 3\nlr = "fast"\n[objective]\nratio = 3\n[objective.clip]\nhigh = -1\n')
    text = refusal("--tops", "1", path=path)
    assert text.startswith("5 problems in the configuration:\n")
    for part in (f"stepss (in {path}): there is no such field", "--tops: there is", 'lr = "fast"', "ratio = 3",
                 "objective.clip.high = -1"):  # fmt: skip
        assert part in text


def test_a_required_field_says_what_it_is():
    with pytest.raises(ConfigError, match=r"model is required\. Where to start\."):
        load(Config)


def test_toml_types_are_strict_and_broken_toml_is_named(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('steps = "3"\nshuffle = 1\n')
    text = refusal(path=path)
    assert 'steps = "3" is not a whole number' in text and "shuffle = 1 is not true or false" in text
    path.write_text("steps = \n")
    assert "c.toml is not valid TOML" in refusal(path=path)


# -- writing and comparing ---------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    Config,
    model=st.text(max_size=8),
    steps=st.integers(1, 2**62),
    lr=st.floats(allow_nan=False),
    shuffle=st.booleans(),
    tasks=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    out=st.none() | st.just(Path("a b/c")),
    weights=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False), max_size=2),
    rewards=st.lists(st.builds(Reward, name=st.text(max_size=3), weight=st.floats(allow_nan=False)), max_size=2).map(
        tuple
    ),
    objective=st.builds(
        Objective,
        ratio=st.sampled_from(["none", "token", "sequence"]),
        clip=st.builds(Clip, low=st.none() | st.floats(0, 1), high=st.floats(0.1, 1)),
    ),
    teacher=st.none() | st.just(Clip(kind="none")),
)


@given(CONFIGS)
@settings(deadline=None, derandomize=True)
@example(Config(model='"\x7f\x00\\', tasks=("\x7f",), weights={"\x7f": 0.0, "a.b": 1e-300}))
def test_what_is_written_reads_back_equal(tmp_path_factory, cfg):
    path = tmp_path_factory.mktemp("c") / "config.toml"
    path.write_text(to_toml(cfg), encoding="utf-8")
    back = load(Config, path)
    assert back == cfg
    assert diff(back, cfg) == []


def test_the_template_explains_every_field():
    text = to_toml(Config)
    assert "# Where to start.\n# model =    (required)" in text
    assert '# "min" | "weight" | "none"\nkind = "min"' in text
    assert "# Upper edge. The second sentence.\n#\n# A second paragraph." in text
    assert tomllib.loads(text)["objective"]["clip"]["low"] == 0.2


def test_differences_know_what_may_change():
    found = diff(get("--steps=5"), get("--objective.clip.low=none"))
    assert [(str(d), d.may_change) for d in found] == [
        ("steps: 5 → 100", True),
        ("objective.clip.low: 0.2 → none", False),
    ]


def test_user_files_are_found_anywhere():
    cfg = get("--tasks=a,my/tasks.py:make", "--rewards=[{name = 'r.py:reward'}]", "--model=not:a file.py")
    assert list(user_files(cfg)) == ["my/tasks.py", "r.py"]


def test_documentation_is_read_from_the_source():
    assert docs(Clip)["low"] == "Lower edge; none: no lower edge."
    assert docs(Reward) == {}
    assert type_text(float | None) == "number | none" and type_text(tuple[str, ...]) == "list of text"


def test_every_preset_reads_back_equal(tmp_path):
    policy = pytest.importorskip("posttrain.objectives.policy")
    from posttrain.objectives.presets import PRESETS

    for name, objective in PRESETS.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(to_toml(objective))
        assert load(policy.Objective, path) == objective, name


def test_importing_posttrain_needs_no_torch():
    code = "import sys, posttrain, posttrain.config; posttrain.Task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
