"""`posttrain config METHOD [flags]`: the method's whole config as commented TOML, to save and edit."""

from collections.abc import Sequence

from posttrain import config
from posttrain.cli.options import wants_help
from posttrain.cli.train import listed, method


def main(words: Sequence[str]) -> None:
    """Print the config; flags, presets and --config FILE are resolved into it."""
    if not words or wants_help(words):
        print("posttrain config METHOD [flags] > my.toml      then: posttrain train METHOD --config my.toml\n")
        print("Prints every setting of a method with its meaning and default, flags and --preset resolved into it.\n")
        print(listed())
        return
    _, module = method(words[0])
    print(config.to_toml(config.load(module.Config, None, words[1:]) if words[1:] else module.Config), end="")
