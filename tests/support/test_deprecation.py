"""Old keywords: they do what the new ones do, warn at the caller's line, and are an error beside the new."""

import warnings

import pytest

from tl_backward._support.deprecation import old_keywords
from tl_backward.text.options import TextOptions


@old_keywords(
    {"weight": "weights", "batching": "options.batch_size", "max_tokens": "options.max_tokens"}, options=TextOptions
)
def function(model, *, weights=None, options=TextOptions()):  # noqa: B008
    return model, weights, options


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ({"weight": "W_in"}, {"weights": "W_in"}, r"function\(weight=\.\.\.\) is now function\(weights=\.\.\.\)"),
        ({"batching": 2}, {"options": TextOptions(batch_size=2)}, r"is now function\(options=TextOptions\(batch_size="),
        (
            {"batching": 2, "max_tokens": 9, "options": TextOptions(n_batches=3)},
            {"options": TextOptions(batch_size=2, max_tokens=9, n_batches=3)},
            r"TextOptions\(max_tokens=",
        ),
    ],
)
def test_an_old_keyword_does_what_the_new_one_does(old, new, named):
    with pytest.warns(DeprecationWarning, match=named) as said:
        found = function("m", **old)
    assert found == function("m", **new) and said[0].filename == __file__


def test_new_keywords_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function("m", weights=None, options=TextOptions())


def test_both_names_are_an_error():
    with pytest.raises(TypeError, match="got 'weights' and its old name 'weight'"):
        function("m", weight=1, weights=2)


def test_both_forms_of_a_field_are_an_error():
    with pytest.raises(TypeError, match="got 'options' with 'batch_size' and its old name 'batching'; drop the old"):
        function("m", batching=2, options=TextOptions(batch_size=3))


def test_a_field_is_checked_as_ever():
    with pytest.raises(ValueError, match="Expected batch_size of at least 1, got 0"), pytest.warns(DeprecationWarning):
        function("m", batching=0)
