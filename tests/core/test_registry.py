from __future__ import annotations

import importlib.metadata

import pytest

from salver.core.errors import DuplicateName, Internal, UnknownName
from salver.core.registry import Family, load

Points = list[importlib.metadata.EntryPoint]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    """The entry points that are installed; the registry asks for them no more than it must."""
    installed: Points = []

    def entry_points(group: str) -> Points:
        return [point for point in installed if point.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return installed


def point(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "salver.readers")


def make() -> Family[type]:
    return Family("readers", {"json": "json:JSONDecoder", "broken": "json:Nonsense", "gone": "no_such_module:X"})


def test_built_ins_and_plug_ins_come_by_the_same_door(points: Points) -> None:
    points.append(point("csv", "csv:DictReader"))
    family = make()
    assert family.names() == ("json", "broken", "gone", "csv")
    assert family.get("json").__name__ == "JSONDecoder"
    assert family.get("csv").__name__ == "DictReader"
    assert family.get("csv") is family.get("csv")


def test_an_unknown_name_is_answered_with_the_valid_ones(points: Points) -> None:
    with pytest.raises(
        UnknownName, match=r"unknown member of readers 'jsn'. Did you mean 'json'\? Valid: broken, gone, json"
    ):
        make().get("jsn")


def test_a_name_claimed_twice_is_refused(points: Points) -> None:
    points.append(point("json", "csv:DictReader"))
    family = make()
    assert family.get("json").__name__ == "JSONDecoder"
    with pytest.raises(
        DuplicateName, match="readers: 'json' is registered twice, by json:JSONDecoder and by csv:DictReader"
    ):
        family.names()
    with pytest.raises(DuplicateName):
        family.get("csv")


def test_built_ins_are_found_without_a_look_at_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> Points:
        raise AssertionError(group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    family = make()
    assert family.get("json").__name__ == "JSONDecoder"
    assert next(iter(family)) == "json"


@pytest.mark.parametrize("name", ["broken", "gone"])
def test_a_member_that_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(Internal, match="cannot load '"):
        make().get(name)


def test_load() -> None:
    assert load("json:dumps")([1]) == "[1]"
