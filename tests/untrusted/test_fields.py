"""The kinds of values of a configuration: what each allows, and how a problem is worded."""

from typing import Any

import pytest

from lightx2v_sgmd.untrusted.fields import (
    ByLayer,
    Choice,
    Field,
    Flag,
    LayerName,
    Null,
    Real,
    Several,
    Text,
    Whole,
    first_problem,
    optional,
    shown,
)

NAN = float("nan")
CASES: list[tuple[Field, list[Any], list[Any]]] = [
    (Whole(1, 4), [1, 4], [0, 5, True, 2.0, "2", None]),
    (Real(0.5, 2.0), [0.5, 1, 2.0], [0.4, NAN, float("inf"), True, "1"]),
    (Flag(), [True, False], [0, 1, "true", None]),
    (Choice(("a", "b")), ["a"], ["c", ["a"], None]),
    (Text(3), ["", "abc"], ["abcd", b"abc", 3]),
    (Several(Whole(0, 9), 1, 2), [[1], (1, 2)], [[], [1, 2, 3], [10], "12", {"a": 1}]),
    (optional(Whole(1, 4)), [1, None], [0, "null"]),
    (Null(), [None], [0, "", False]),
    (LayerName(), ["blocks.0.attn", r"^proj\.0"], ["a|b", "(a+)+", "", "a..b", "a.*"]),
    (ByLayer(Whole(1, 4)), [{}, {"blocks.0": 2}], [{"a|b": 2}, {"a": 9}, [1]]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), CASES, ids=lambda case: type(case).__name__)
def test_what_a_kind_allows(kind: Field, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not kind.allows(value)] == []
    assert [value for value in bad if kind.allows(value)] == []
    assert kind.wanted


def test_one_value_for_each_of_few_layers() -> None:
    assert not ByLayer(Whole(1, 4)).allows({f"layer{n}": 1 for n in range(4097)})


def test_the_first_problem_is_named() -> None:
    fields: dict[str, Field] = {"width": Whole(1, 4), "names": Several(Text(3), 2, 2)}
    assert first_problem({"width": 2, "other": object()}, fields) is None
    missing = first_problem({}, fields, frozenset({"width"}))
    assert missing == "width is missing, and must be a whole number from 1 to 4"
    wrong = first_problem({"width": 2, "names": ["a"]}, fields)
    assert wrong is not None and wrong.endswith("a list of 2, each a text of at most 3 characters")


def test_large_values_are_described() -> None:
    assert shown({"a": 1}) == "an object of 1" and shown([0] * 9) == "a list of 9"
    assert shown(10**30) == "about 10^30" and len(shown("x" * 1000)) < 100
