"""Selections over named values: the language of conditions, with names and texts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.conditions import ConditionError, Selection, SelectionKindError

ROW = {"val_loss": 0.42, "learning_rate": 1e-4, "data.seed": 7.0, "model": "tiny", "eval/top-1": 0.9, "packed": True}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("val_loss < 0.5", True),
        ("val_loss < 0.5 and learning_rate >= 1e-4", True),
        ("val_loss < 0.5 and learning_rate > 1e-4", False),
        ("data.seed == 7", True),
        ("`eval/top-1` > 0.8", True),
        ("model == 'tiny'", True),
        ('model != "tiny" or val_loss * 2 < 0.9', True),
        ("model < 'z'", True),
        ("packed == true", True),
        ("packed == false", False),
        ("not (val_loss > 0.4)", False),
        ("-val_loss < 0", True),
        ("val_loss / 0 > 1", False),
        ("1 / 0 > 1", False),
        ("not 1 / 0 > 1", False),
        ("0 / 0 == 0", False),
        ("1e300 * 1e300 > 1", False),
        ("absent < 1", False),
        ("not absent < 1", False),
        ("absent < 1 or val_loss < 1", True),
        ("model < 1", False),
        ("not model < 1", False),
        ("value == 1 or mean == 2 or val_loss < 1", True),
    ],
)
def test_a_selection_is_true_of_a_row_or_not(text: str, holds: bool) -> None:
    assert Selection.parse(text).holds(ROW) is holds


def test_names_are_told_once_in_order() -> None:
    assert Selection.parse("b.c < 1 and a > 2 or b.c == 'x' and `d e` == true").names == ("b.c", "a", "d e")


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("val_loss", 1),
        ("val_loss <", 11),
        ("'a' and b < 1", 1),
        ("a < 1 b", 7),
        ("a $ 1", 3),
        ("mean(3) < 1", 1),
        ("", 1),
    ],
)
def test_a_mistake_is_named_with_its_column(text: str, column: int) -> None:
    with pytest.raises(ConditionError) as caught:
        Selection.parse(text)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset like 'corp'", "column 9: 'like' is no comparison; use <, <=, >, >=, ==, !="),
        ("val_loss in 3", "column 10: 'in' is no comparison"),
        ("val_loss = 0.5", "column 10: '=' is not understood; did you mean ==?"),
        ("a < 1 && b < 1", "'&' is not understood; did you mean and?"),
        ("val_loss", "a value stands where a statement is needed; compare it, such as val_loss < 0.5"),
        ("(a + b)", "compare it, such as val_loss < 0.5"),
    ],
)
def test_a_mistake_names_what_was_meant(text: str, said: str) -> None:
    with pytest.raises(ConditionError) as caught:
        Selection.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("val_loss < 'abc'", "val_loss is a number, but 'abc' is a text"),
        ("model == 1", "model is a text, but 1 is a number"),
        ("data.seed > 1 or packed == 1", "packed is true or false, but 1 is a number"),
        ("not (val_loss * 2 < model)", "0.84 is a number, but model is a text"),
    ],
)
def test_a_comparison_that_is_true_of_nothing_is_a_mistake(text: str, said: str) -> None:
    with pytest.raises(SelectionKindError) as caught:
        Selection.parse(text).require_kinds([{}, ROW])
    assert said in str(caught.value)


def test_a_name_that_is_a_text_in_some_rows_only_may_be_compared_with_either() -> None:
    selection = Selection.parse("seed == 1 and model != 'x' and absent < 1")
    selection.require_kinds([{"seed": 1.0, "model": "a"}, {"seed": "one", "model": "b"}])
    selection.require_kinds([])


@given(st.text(max_size=60))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    with suppress(ConditionError):
        Selection.parse(text).holds(ROW)
