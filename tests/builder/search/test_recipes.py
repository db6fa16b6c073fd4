"""Which candidates are tried, and on which backends."""

from __future__ import annotations

from collections import Counter

from salver.builder.search.recipes import (
    MOVES,
    Proposal,
    after_slimming,
    is_moved,
    moves,
    neighbors,
    presets,
    static,
    step,
    without_layers,
)

OPS = Counter({"Conv": 2, "Gemm": 1, "Relu": 2})


def test_only_backends_that_were_named_are_tried() -> None:
    assert not any(is_moved(proposal.recipe) for proposal in presets(OPS))
    moved = [proposal for proposal in presets(OPS, ["openvino"]) if is_moved(proposal.recipe)]
    assert [[item["pass"] for item in one.recipe] for one in moved] == [["openvino"], ["int8-static", "openvino"]]
    assert {one.origin for one in moved} == {"preset"}


def test_names_are_unique_on_every_backend() -> None:
    names = [proposal.name for proposal in presets(OPS, tuple(MOVES))]
    assert len(set(names)) == len(names)


def test_the_best_is_moved_and_what_was_moved_stays() -> None:
    fp16 = Proposal(name="fp16", recipe=(step("fp16"),), origin="preset")
    [moved] = moves(fp16, ["openvino"])
    assert (moved.name, moved.origin) == ("fp16, openvino", "refined")
    assert moved.recipe == (step("fp16"), step("openvino"))
    assert not list(moves(moved, ["openvino"]))
    assert not list(moves(fp16, []))


def test_neighbors_stay_on_the_backend() -> None:
    plain = static(["Conv", "Gemm"], per_channel=True)
    [moved] = moves(plain, ["openvino"])
    here, there = list(neighbors(plain.recipe)), list(neighbors(moved.recipe))
    assert here
    assert [one.recipe for one in there] == [(*one.recipe, MOVES["openvino"]) for one in here]
    assert [one.name for one in there] == [f"{one.name}, openvino" for one in here]
    few, many = (list(without_layers(one.recipe, ["a", "b", "c", "d"])) for one in (plain, moved))
    assert [one.recipe for one in many] == [(*one.recipe, MOVES["openvino"]) for one in few]
    assert few


def test_a_model_that_was_only_moved_has_no_neighbors() -> None:
    assert not list(neighbors((MOVES["openvino"],)))
    assert not list(without_layers((MOVES["openvino"],), ["a", "b"]))


def test_the_framework_that_made_it_has_the_original_alone() -> None:
    proposals = [one for one in presets(OPS, ["torch"]) if is_moved(one.recipe)]
    assert [(one.name, one.recipe) for one in proposals] == [("torch", (step("native"),))]
    fp16 = Proposal(name="fp16", recipe=(step("fp16"),), origin="preset")
    assert not list(moves(fp16, ["torch"]))
    assert not list(after_slimming("torch", proposals[0].recipe))
