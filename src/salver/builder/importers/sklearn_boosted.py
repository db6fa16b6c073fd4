"""Boosting estimators among the steps of a scikit-learn pipeline: their trees, as the importer of their library reads
them, in the graph that skl2onnx makes of the other steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.builder.importers import IMPORTERS
from salver.builder.importers.boosted import BoostedImporter, name_classes
from salver.builder.importers.forest import write_forest
from salver.core.errors import Unimplemented

_LIBRARIES: Final = ("xgboost", "lightgbm", "catboost")
_COMPARES_IN_FP64: Final = "lightgbm"
_ELEMENTS: Final = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE}


def library_of(estimator: Any) -> str:
    """The boosting library that an estimator is of; empty for all others."""
    library = type(estimator).__module__.partition(".")[0]
    return library if library in _LIBRARIES else ""


def labels_of(estimator: Any) -> tuple[Any, ...]:
    """What its labels are for each class: whole numbers, or texts; empty for the numbers of the classes."""
    return name_classes(tuple(np.asarray(getattr(estimator, "classes_", ())).tolist()))


def add_boosted(scope: Any, operator: Any, container: Any, given: str) -> None:
    """A converter of skl2onnx. Scores are cast to the datatype of the input, where that is FP64.

    Args:
        given: datatype of the step's input.

    Raises:
        Unimplemented: the trees cannot be said in ONNX; names what.
    """
    estimator = operator.raw_operator
    library = library_of(estimator)
    # XGBoost and CatBoost round what they are given to FP32 themselves.
    wanted = "FP64" if library == _COMPARES_IN_FP64 and given != "FP32" else "FP32"
    graph = _graph_of(estimator, library, wanted)
    if len(graph.output) != len(operator.outputs):
        raise Unimplemented(f"this {type(estimator).__name__} gives no probabilities")
    graft = _Graft(scope, container)
    source = operator.inputs[0].full_name
    if given != wanted:
        source = graft.cast(source, _ELEMENTS[wanted])
    names = {graph.input[0].name: source}
    names |= {made.name: told.full_name for made, told in zip(graph.output, operator.outputs, strict=True)}
    scores, result = graph.output[-1].name, operator.outputs[-1].full_name
    if given == "FP64":
        names[scores] = scope.get_unique_variable_name(scores)
        graft.cast(names[scores], TensorProto.DOUBLE, result)
    graft.add(graph, names)


def _graph_of(estimator: Any, library: str, datatype: str) -> onnx.GraphProto:
    importer = IMPORTERS.get(library)()
    if not isinstance(importer, BoostedImporter):
        raise Unimplemented(f"the importer '{library}' that is installed reads no trees")
    return write_forest(importer.forest(importer.unwrap(estimator)), datatype, labels_of(estimator)).graph


class _Graft:
    """Puts nodes and weights of one graph into another, under names that are free there."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def cast(self, name: str, to: int, result: str = "") -> str:
        """
        Returns:
            The result's name.
        """
        result = result or self._scope.get_unique_variable_name("cast")
        self._container.add_node("Cast", [name], [result], name=self._scope.get_unique_operator_name("Cast"), to=to)
        return result

    def add(self, graph: onnx.GraphProto, known: Mapping[str, str]) -> None:
        """
        Args:
            known: names of inputs and outputs -> what they are called here.
        """
        names = dict(known)
        for weight in graph.initializer:
            names[weight.name] = self._scope.get_unique_variable_name(weight.name)
            values = numpy_helper.to_array(weight).reshape(-1).tolist()
            self._container.add_initializer(names[weight.name], weight.data_type, list(weight.dims), values)
        for node in graph.node:
            for name in node.output:
                names.setdefault(name, self._scope.get_unique_variable_name(name))
            self._container.add_node(
                node.op_type,
                [names[name] for name in node.input],
                [names[name] for name in node.output],
                op_domain=node.domain,
                name=self._scope.get_unique_operator_name(node.op_type),
                **{each.name: helper.get_attribute_value(each) for each in node.attribute},
            )
