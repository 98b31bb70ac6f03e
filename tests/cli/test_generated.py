"""Options that commands take from option classes and signatures: names, defaults, words and types stand there alone."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from tl_backward.cli.generated import add_options, documented, options_from
from tl_backward.embedding_space.options import VectorOptions
from tl_backward.text.options import TextOptions


@dataclass(frozen=True)
class Every:
    """One of each kind.

    Attributes:
        n_things: how many, at most
            100% of them.
        rate: how fast.
        rates: of several.
        layers: which.
        names: of what.
        way: of going.
        kind: of one or two.
        seed: any whole number.
        loud: say more.
        control: run it.
    """

    n_things: int | None = None
    rate: float = 0.5
    rates: Sequence[float] = (0.5, 1.0)
    layers: int | Sequence[int] | None = None
    names: Sequence[str] = ("a", "b")
    way: Literal["up", "down"] = "up"
    kind: Literal["one", "two"] | None = None
    seed: int = 0
    loud: bool = False
    control: bool = True


def parsed(source, argv, *names, **defaults):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, source, *names, **defaults)
    return parser, parser.parse_args(argv)


def test_without_arguments_the_defaults_are_the_classs():
    assert options_from(parsed(Every, [])[1], Every) == Every()
    assert options_from(parsed(TextOptions, [])[1], TextOptions) == TextOptions()


def test_every_kind_of_value():
    argv = "--n-things 3 --rate .25 --rates .5,2 --layers 0,2-3 --names x,y --way down --kind two --seed -4 --loud --no-control"
    expected = Every(3, 0.25, [0.5, 2.0], [0, 2, 3], ["x", "y"], "down", "two", -4, True, False)
    assert options_from(parsed(Every, argv.split())[1], Every) == expected


def test_some_alone_and_another_default():
    parser, arguments = parsed(VectorOptions, ["--fold-ln"], "inverse", "fold_ln", inverse="pinv")
    assert options_from(arguments, VectorOptions, filters=("ascii",)) == VectorOptions("pinv", True, None, ("ascii",))
    shown = " ".join(parser.format_help().split())
    assert "--tokens" not in shown and "(default: pinv)" in shown


@pytest.mark.parametrize(
    "argv", [["--n-things", "0"], ["--way", "left"], ["--rate", "x"], ["--rates", "1,x"], ["--layers", "a"]]
)
def test_another_value_is_refused(argv):
    with pytest.raises(argparse.ArgumentError):
        parsed(Every, argv)


def test_the_help_is_the_docstring_or_the_commands_own():
    parser = argparse.ArgumentParser()
    add_options(parser, Every, "rate", "seed", words={"rate": "as it likes"})
    assert "as it likes (default: 0.5)" in parser.format_help() and "any whole number" in parser.format_help()
    shown = " ".join(parsed(Every, [])[0].format_help().split())
    for words in documented(Every).values():
        assert words in shown
    assert documented(Every)["n_things"] == "how many, at most 100% of them"
    assert "how fast (default: 0.5)" in shown and "of what (default: a,b)" in shown


def test_a_type_that_no_text_stands_for():
    def function(model: complex) -> None:
        """Nothing.

        Args:
            model: a number.
        """

    with pytest.raises(TypeError, match="Expected an annotation that text can stand for, got .*complex"):
        parsed(function, [])


def test_none_is_no_word_of_the_shell():
    """Python's None is what the option has when it is left out."""
    parser = argparse.ArgumentParser()
    add_options(parser, TextOptions, "max_tokens")
    assert "left out: the model's context" in " ".join(parser.format_help().split())
