"""Decision trees as every boosting library has them, and their ONNX graph.

All comparisons become ``x <= threshold`` with the threshold rounded *down* to the precision of the inputs, so that
every input that this precision can hold takes the path that the library takes, also at a threshold itself.
Format: https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html, version 3.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.core.arrays import Array

Link = Literal["identity", "exp", "sigmoid", "two-classes", "softmax", "one-vs-all"]
"""From sums of leaves to answers: ``prediction`` for the first three, ``label`` and ``probabilities`` for the rest."""

INPUT: Final = "x"
_KINDS: Final = {"FP32": (TensorProto.FLOAT, np.float32), "FP64": (TensorProto.DOUBLE, np.float64)}
_OPSETS: Final = (("", 18), ("ai.onnx.ml", 3))
_IR_VERSION: Final = 9


class Leaf(msgspec.Struct, frozen=True):
    """What a row that ends here adds: (output, value)."""

    values: tuple[tuple[int, float], ...]


class Split(msgspec.Struct, frozen=True):
    """A question about one feature.

    Args:
        feature: its column.
        yes, no: numbers of the nodes that follow.
        most: largest value, in FP64, that is answered with yes.
        missing: whether NaN is answered with yes.
        ranges: of a feature that is asked for several: ``low <= x < high`` is answered with yes; sorted, apart from
            each other. The first may begin at minus infinity.
    """

    feature: int
    yes: int
    no: int
    most: float = 0.0
    missing: bool = False
    ranges: tuple[tuple[float, float], ...] = ()


Tree = dict[int, Split | Leaf]
"""Nodes by number; the root is 0."""


class Forest(msgspec.Struct, frozen=True):
    """Trees whose leaves are added up.

    Args:
        trees: in the order in which they are added.
        features: columns of the input.
        base: what each output begins with.
        link: what is done with the sums.
        slope: by which they are multiplied before.
    """

    trees: list[Tree]
    features: int
    base: list[float]
    link: Link
    slope: float = 1.0


def below(value: float, datatype: str = "FP64") -> float:
    """The largest number of a datatype under a value: ``x < value`` is ``x <= below(value)``."""
    kind: Any = _KINDS[datatype][1]
    rounded = kind(value)
    # Compared as Python's floats: numpy would round the value to the other's precision first.
    return float(rounded) if float(rounded) < value else float(np.nextafter(rounded, kind(-np.inf)))


def ranges_of(categories: list[int], *, truncates: bool) -> tuple[tuple[float, float], ...]:
    """Ranges of numbers that a library takes for one of these categories.

    Args:
        truncates: whether -0.5 is category 0 to it, too.
    """
    made: list[tuple[float, float]] = []
    for category in sorted(set(categories)):
        low = float(np.nextafter(-1.0, 0.0)) if category == 0 and truncates else float(category)
        if made and made[-1][1] == low:
            made[-1] = (made[-1][0], category + 1.0)
        else:
            made.append((low, category + 1.0))
    return tuple(made)


def write_forest(forest: Forest, datatype: str, classes: tuple[Any, ...] = ()) -> onnx.ModelProto:
    """The graph of a forest, with one input ``x``.

    Args:
        datatype: of the input, ``FP32`` or ``FP64``.
        classes: what the label is for each class; empty for its number.
    """
    writer = _Writer(datatype)
    for tree in forest.trees:
        writer.add(tree)
    nodes = [writer.node(forest)]
    weights: list[onnx.TensorProto] = []
    scores = "sums"
    if forest.slope != 1.0:
        weights.append(numpy_helper.from_array(np.array(forest.slope, np.float32), "slope"))
        nodes.append(helper.make_node("Mul", ["sums", "slope"], ["scaled"]))
        scores = "scaled"
    linked, outputs = _link(forest, scores, classes, weights)
    graph = helper.make_graph(
        [*nodes, *linked],
        "forest",
        [helper.make_tensor_value_info(INPUT, _KINDS[datatype][0], ["batch", forest.features])],
        outputs,
        weights,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


_LINKS: Final = {"identity": "Identity", "exp": "Exp", "sigmoid": "Sigmoid"}


def _link(
    forest: Forest, scores: str, classes: tuple[Any, ...], weights: list[onnx.TensorProto]
) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
    width = len(forest.base)
    if forest.link in _LINKS:
        node = helper.make_node(_LINKS[forest.link], [scores], ["prediction"])
        return [node], [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", width])]
    if forest.link == "two-classes":
        weights.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
        nodes = [
            helper.make_node("Sigmoid", [scores], ["second"]),
            helper.make_node("Sub", ["one", "second"], ["first"]),
            helper.make_node("Concat", ["first", "second"], ["probabilities"], axis=1),
        ]
        width = 2
    else:
        operator: dict[str, Any] = {"axis": 1} if forest.link == "softmax" else {}
        nodes = [helper.make_node("Softmax" if operator else "Sigmoid", [scores], ["probabilities"], **operator)]
    kind: int = TensorProto.INT64
    best = "best" if classes else "label"
    nodes.append(helper.make_node("ArgMax", ["probabilities"], [best], axis=1, keepdims=0))
    if classes:
        names, kind = _class_tensor(classes)
        weights.append(names)
        nodes.append(helper.make_node("Gather", ["classes", best], ["label"]))
    return nodes, [
        helper.make_tensor_value_info("label", kind, ["batch"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", width]),
    ]


def _class_tensor(classes: tuple[Any, ...]) -> tuple[onnx.TensorProto, int]:
    if all(isinstance(c, int) for c in classes):
        return numpy_helper.from_array(np.array(classes, np.int64), "classes"), TensorProto.INT64
    texts = np.array([str(c) for c in classes], dtype=object)
    return numpy_helper.from_array(texts, "classes"), TensorProto.STRING


class _Writer:
    """Lists the nodes of trees as the operator wants them."""

    def __init__(self, datatype: str) -> None:
        self._datatype = datatype
        self._kind: Any = _KINDS[datatype][1]
        self._trees = 0
        self._nodes: list[tuple[int, int, int, float, str, int, int, int]] = []
        self._leaves: list[tuple[int, int, int, float]] = []

    def add(self, tree: Tree) -> None:
        number, self._trees = self._trees, self._trees + 1
        fresh = max(tree) + 1
        # Links are followed from the root: the operator takes a node's number, and wants no node that nothing leads to.
        for own, node in sorted(tree.items()):
            if isinstance(node, Leaf):
                self._nodes.append((number, own, 0, 0.0, "LEAF", 0, 0, 0))
                self._leaves += [(number, own, output, value) for output, value in node.values]
            elif not node.ranges:
                self._ask(number, own, node.feature, self._down(node.most), node.yes, node.no, node.missing)
            else:
                fresh = self._ask_ranges(number, own, node, fresh)

    def _ask_ranges(self, tree: int, own: int, node: Split, fresh: int) -> int:
        """One question for each border, from the lowest up: under it is outside, and inside, in turn."""
        borders = [border for pair in node.ranges for border in pair]
        inside = borders[0] == -np.inf
        for i, border in enumerate(borders := borders[inside:]):
            last = i == len(borders) - 1
            follows = node.no if last else fresh
            missing = inside == node.missing and i < 2
            target = node.yes if inside else node.no
            self._ask(tree, own, node.feature, below(border, self._datatype), target, follows, missing)
            own, fresh, inside = fresh, fresh + (not last), not inside
        return fresh

    def _ask(self, tree: int, own: int, feature: int, most: float, yes: int, no: int, missing: bool) -> None:
        self._nodes.append((tree, own, feature, most, "BRANCH_LEQ", yes, no, int(missing)))

    def _down(self, value: float) -> float:
        rounded = float(self._kind(value))
        return rounded if rounded <= value else below(value, self._datatype)

    def node(self, forest: Forest) -> onnx.NodeProto:
        trees, own, features, most, modes, yes, no, missing = zip(*self._nodes, strict=True)
        leaf_trees, leaf_nodes, outputs, values = zip(*self._leaves, strict=True)
        numbers = {
            "nodes_values": np.array(most, self._kind),
            "target_weights": np.array(values, self._kind),
            "base_values": np.array(forest.base, self._kind),
        }
        made: dict[str, Any] = {
            "nodes_treeids": trees,
            "nodes_nodeids": own,
            "nodes_featureids": features,
            "nodes_modes": modes,
            "nodes_truenodeids": yes,
            "nodes_falsenodeids": no,
            "nodes_missing_value_tracks_true": missing,
            "target_treeids": leaf_trees,
            "target_nodeids": leaf_nodes,
            "target_ids": outputs,
            "n_targets": len(forest.base),
            "aggregate_function": "SUM",
            "post_transform": "NONE",
        }
        made |= self._written(numbers)
        return helper.make_node("TreeEnsembleRegressor", [INPUT], ["sums"], domain="ai.onnx.ml", **made)

    def _written(self, numbers: dict[str, Array]) -> dict[str, Any]:
        """Plain attributes are FP32; FP64 needs tensors."""
        if self._datatype == "FP32":
            return {name: array.tolist() for name, array in numbers.items()}
        return {f"{name}_as_tensor": numpy_helper.from_array(array, name) for name, array in numbers.items()}
