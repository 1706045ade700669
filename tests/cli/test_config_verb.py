"""`posttrain config METHOD` is the whole documentation of a method, and reads back to the very defaults."""

import inspect

import pytest

from posttrain import config
from posttrain.cli.main import main
from posttrain.cli.train import METHODS, method
from posttrain.schema import docs, leaves


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
def test_what_is_printed_reads_back_to_the_defaults(capsys, tmp_path, name):
    text = printed(capsys, "config", name)
    (tmp_path / "c.toml").write_text(text)
    cls = method(name)[1].Config
    assert config.load(cls, tmp_path / "c.toml") == cls()
    assert config.to_toml(cls()) == text


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_there_with_its_meaning(capsys, name):
    cls = method(name)[1].Config
    lines = printed(capsys, "config", name).splitlines()
    comments = "".join(line.removeprefix("#") for line in lines if line.startswith("#")).replace(" ", "")
    for key, field, owner in leaves(cls):
        said = docs(owner).get(field.name)
        assert said, f"{key} says nothing of itself"
        assert "".join(said.split()) in comments, key
        assert any(line.startswith(f"{field.name} = ") for line in lines), key


@pytest.mark.parametrize("name", METHODS)
def test_help_tells_the_method_its_paper_and_its_settings(capsys, name):
    module = method(name)[1]
    text = printed(capsys, "train", name, "--help")
    assert inspect.getdoc(module).splitlines()[0] in text and inspect.getdoc(module.train).splitlines()[0] in text
    assert all(f"--{key.replace('_', '-')}" in text for key, _, _ in leaves(module.Config))
    assert name in printed(capsys, "config", "--help") and name in printed(capsys, "plan", "--help")


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(method(n)[1].Config, "PRESETS")])
def test_presets_print_and_read_back(capsys, tmp_path, name):
    cls = method(name)[1].Config
    for preset in {key: None for table in cls.PRESETS.values() for key in table}:
        try:
            wanted = config.load(cls, None, ["--preset", preset])
        except config.ConfigError:
            continue  # one that this method refuses, such as a preset with a critic in `group`
        (tmp_path / "c.toml").write_text(config.to_toml(wanted))
        assert config.load(cls, tmp_path / "c.toml") == wanted, preset
