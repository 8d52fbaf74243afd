"""Plain values are laid over a dataclass's defaults and fitted to its fields."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from lumen_hpc.config import merge
from lumen_hpc.config.merge import Misfit


@dataclass
class Inner:
    number: float = 1
    words: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Outer:
    count: int = 1
    on: bool = False
    mode: int | str = "auto"
    sure: bool | None = None
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    named: dict[str, Inner] = field(default_factory=lambda: {"first": Inner(number=5)})
    counts: dict[str, int] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


def outer(*layers: dict[str, Any]) -> Outer:
    plain = dataclasses.asdict(Outer())
    for layer in layers:
        plain = merge.fitted(Outer, plain, layer)
    return merge.built(Outer, plain)


def test_without_values_the_defaults_stand_in_their_own_types() -> None:
    assert outer() == Outer()
    assert isinstance(outer().inner.number, float), "a default of 1: config.yaml and its hash say 1.0 before and after"


def test_sections_are_merged_by_key_and_lists_replaced() -> None:
    found = outer({"inner": {"words": ["b", "c"]}, "counts": {"x": 1}}, {"inner": {"number": 2}, "counts": {"y": 2}})
    assert found.inner == Inner(number=2.0, words=["b", "c"]) and found.counts == {"x": 1, "y": 2}


def test_an_entry_of_a_mapping_starts_from_its_own_default_and_a_new_one_from_the_class() -> None:
    found = outer({"named": {"first": {"words": []}, "second": {"number": 3}}})
    assert found.named == {"first": Inner(5.0, []), "second": Inner(3.0, ["a"])}


def test_an_optional_section_begins_with_its_first_value_and_ends_with_none() -> None:
    assert outer({"perhaps": {"number": 3}}).perhaps == Inner(number=3.0)
    assert outer({"perhaps": {"number": 3}}, {"perhaps": None}).perhaps is None


def test_what_lies_below_is_not_changed() -> None:
    below = dataclasses.asdict(Outer())
    merge.fitted(Outer, below, {"inner": {"number": 9}, "named": {"first": {"number": 9}}, "counts": {"x": 1}})
    assert below == dataclasses.asdict(Outer())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": "7"}, {"count": 7}),
        ({"on": "yes"}, {"on": True}),
        ({"on": 0}, {"on": False}),
        ({"mode": 3}, {"mode": 3}),
        ({"sure": False}, {"sure": False}),
        ({"inner": {"words": [1, True]}}, {"inner": Inner(1.0, ["1", "True"])}),
        ({"inner": {"number": "1e-5"}}, {"inner": Inner(1e-5)}),
        ({"anything": {"a": {"b": [1]}}}, {"anything": {"a": {"b": [1]}}}),
    ],
)
def test_values_are_converted_where_nothing_is_lost(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert outer(values) == dataclasses.replace(outer(), **expected)


@pytest.mark.parametrize(
    ("values", "key", "kind"),
    [
        ({"count": 1.5}, "count", int),
        ({"count": True}, "count", int),
        ({"count": None}, "count", int),
        ({"on": 2}, "on", bool),
        ({"mode": True}, "mode", int | str),
        ({"inner": 5}, "inner", Inner),
        ({"inner": {"number": "x"}}, "inner.number", float),
        ({"inner": {"words": "a"}}, "inner.words", list[str]),
        ({"inner": {"words": [None]}}, "inner.words", list[str]),
        ({"named": {"first": {"numbr": 1}}}, "named.first.numbr", None),
        ({"counts": {"x": "many"}}, "counts.x", int),
        ({"counts": {1: 2}}, "counts.1", None),
        ({"unknown": {"a": {"b": 1}}}, "unknown.a.b", None),
    ],
)
def test_a_misfit_is_named_by_its_whole_key_and_the_fields_type(values: dict[str, Any], key: str, kind: Any) -> None:
    with pytest.raises(Misfit) as caught:
        outer(values)
    assert (caught.value.key, caught.value.kind) == (key, kind)
