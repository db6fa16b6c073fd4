"""scikit-learn -> ONNX by skl2onnx, with its known traps avoided; the only file that imports skl2onnx."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto

from salver.backends.sklearn_inputs import Column
from salver.backends.sklearn_model import output_names
from salver.builder.importers.onnx_edit import rename_value
from salver.builder.importers.sklearn_boosted import add_boosted, labels_of, library_of
from salver.core.errors import MissingExtra, Unimplemented

try:
    import skl2onnx
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common import data_types, exceptions
    from skl2onnx.common._registration import get_converter, get_shape_calculator
    from skl2onnx.operator_converters.random_forest import (
        convert_sklearn_random_forest_classifier,
        convert_sklearn_random_forest_regressor_converter,
    )
    from sklearn.base import is_classifier
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
        VotingClassifier,
    )
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.svm import LinearSVC
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
except ImportError as missing:
    raise MissingExtra("importing a scikit-learn model", str(missing.name), "sklearn") from None

_OPSETS: Final = {"": 18, "ai.onnx.ml": 3}
_TYPES: Final = {
    "FP32": data_types.FloatTensorType,
    "FP64": data_types.DoubleTensorType,
    "INT64": data_types.Int64TensorType,
    "BYTES": data_types.StringTensorType,
}
_HIST: Final = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_TREES: Final = {
    kind: sklearn_operator_name_map[kind]
    for kind in (
        DecisionTreeClassifier,
        DecisionTreeRegressor,
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
        *_HIST,
    )
}
_IMPUTER: Final = sklearn_operator_name_map[SimpleImputer]
_VOTING: Final = {VotingClassifier: sklearn_operator_name_map[VotingClassifier]}
_TREE_NUMBERS: Final = frozenset({"nodes_values", "class_weights", "target_weights", "base_values"})
_TENSOR_ATTRIBUTES: Final = 3
"""The first version of the tree operators whose numbers may be FP64 tensors; skl2onnx's forests round them before
it."""
_FORESTS: Final = {
    ExtraTreesClassifier: convert_sklearn_random_forest_classifier,
    ExtraTreesRegressor: convert_sklearn_random_forest_regressor_converter,
    HistGradientBoostingClassifier: convert_sklearn_random_forest_classifier,
    HistGradientBoostingRegressor: convert_sklearn_random_forest_regressor_converter,
    RandomForestClassifier: convert_sklearn_random_forest_classifier,
    RandomForestRegressor: convert_sklearn_random_forest_regressor_converter,
}
_CLASS: Final = re.compile(r"<class '([\w.]+)'>")
_WORD_PATTERN: Final = r"(?u)\b\w\w+\b"
_WORDS_IN_RE2: Final = r"[\p{L}\p{N}_]{2,}"


def versions() -> dict[str, str]:
    """Versions of the converter."""
    return {"skl2onnx": skl2onnx.__version__}


def convert(estimator: Any, columns: list[Column]) -> onnx.ModelProto:
    """Convert a fitted estimator; outputs are named as in `output_names`.

    Raises:
        Unimplemented: there is no converter for a step, or it fails; names it.
    """
    initial = [(c.name, _TYPES[c.datatype]([None, *c.inner])) for c in columns]
    boosted = {type(part) for part in _parts(estimator) if library_of(part)}
    mended = {
        **dict.fromkeys(_TREES, _convert_trees),
        **dict.fromkeys(_VOTING, _convert_voting),
        **dict.fromkeys(boosted, _convert_boosted),
        SimpleImputer: _convert_imputer,
    }
    aliases = {**_TREES, **_VOTING, SimpleImputer: _IMPUTER}
    shapes = {kind: get_shape_calculator(alias) for kind, alias in aliases.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its doubts are settled by the parity check
            graph: onnx.ModelProto = skl2onnx.convert_sklearn(
                estimator,
                name=type(estimator).__name__,
                initial_types=initial,
                target_opset=_OPSETS,
                options=_options(estimator),
                custom_conversion_functions=mended,
                custom_shape_calculators={**shapes, **dict.fromkeys(boosted, _shape_boosted)},
                custom_parsers=dict.fromkeys(boosted, _parse_boosted),
            )
    except (exceptions.MissingConverter, exceptions.MissingShapeCalculator) as error:
        raise Unimplemented(f"skl2onnx {skl2onnx.__version__} has no converter{_for(error)}") from error
    except (
        RuntimeError,
        ValueError,
        TypeError,
        NotImplementedError,
        AttributeError,
        IndexError,
        KeyError,
        NameError,
    ) as error:
        raise Unimplemented(
            f"skl2onnx {skl2onnx.__version__} cannot convert this {type(estimator).__name__}: {type(error).__name__}: "
            f"{_line(error)}"
        ) from error
    _mend_types(graph.graph)
    return _rename_outputs(graph, estimator)


def _mend_types(graph: onnx.GraphProto) -> None:
    """Declare the outputs of casts as what they are."""
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    for value in graph.output:
        value.type.tensor_type.elem_type = casts.get(value.name, value.type.tensor_type.elem_type)


def _options(estimator: Any) -> dict[int, dict[str, Any]]:
    """Plain tensors instead of dictionaries, raw scores where there are no probabilities, and a locale every image
    has."""
    options: dict[int, dict[str, Any]] = {}
    last = _last(estimator)
    plain = isinstance(last, LinearSVC) or library_of(last)  # these give plain tensors, and have no such option
    if is_classifier(estimator) and not plain:
        options[id(estimator)] = {"zipmap": False}
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        options.setdefault(id(last), {})["raw_scores"] = True
    for part in _parts(estimator):
        if library_of(part):
            options[id(part)] = {}  # else skl2onnx gives it one that it has not
        if isinstance(part, CountVectorizer):
            options[id(part)] = {"locale": "C"}
            if part.analyzer == "word" and part.token_pattern == _WORD_PATTERN:
                options[id(part)]["tokenexp"] = _WORDS_IN_RE2
    return options


def _last(estimator: Any) -> Any:
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and the ones it is made of."""
    yield estimator
    for attribute in ("steps", "transformer_list", "transformers_"):
        for entry in getattr(estimator, attribute, []):
            if not isinstance(entry[1], str) and entry[1] is not None:
                yield from _parts(entry[1])


def _rename_outputs(graph: onnx.ModelProto, estimator: Any) -> onnx.ModelProto:
    wanted = output_names(estimator)
    given = [o.name for o in graph.graph.output]
    if len(given) != len(wanted):
        raise Unimplemented(
            f"{type(estimator).__name__} converts to outputs {given}, expected {list(wanted)}; models with several "
            "targets of "
            "classes are not supported"
        )
    for i, name in enumerate(wanted):
        taken = {n for node in graph.graph.node for n in (*node.input, *node.output)} | {
            v.name for v in graph.graph.input
        }
        if name in taken and name != given[i]:
            rename_value(graph.graph, name, f"{name}_inner")
        rename_value(graph.graph, given[i], name)
    return graph


def _convert_trees(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's own converter, given a container that mends what it makes of tree ensembles."""
    kind = type(operator.raw_operator)
    double = isinstance(operator.inputs[0].type, data_types.DoubleTensorType)
    mended = _TreeContainer(container, scope, double, rounds=kind not in _HIST)
    if double and kind in _FORESTS:
        _FORESTS[kind](scope, operator, mended, op_version=_TENSOR_ATTRIBUTES)
    else:
        get_converter(_TREES[kind])(scope, operator, mended)


def _parse_boosted(scope: Any, estimator: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """Which outputs a boosting estimator has; skl2onnx takes the classifiers of CatBoost for regressors."""
    del custom_parsers  # it has no steps
    operator = scope.declare_local_operator("Boosted", estimator)
    operator.inputs = inputs
    for name in output_names(estimator):
        operator.outputs.append(scope.declare_local_variable(name, data_types.FloatTensorType()))
    return operator.outputs


def _shape_boosted(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    double = isinstance(operator.inputs[0].type, data_types.DoubleTensorType)
    scores = data_types.DoubleTensorType if double else data_types.FloatTensorType
    classes = getattr(operator.raw_operator, "classes_", ())
    if len(operator.outputs) == 1:
        operator.outputs[0].set_type(scores([rows, None]))  # how many, the trees say
        return
    words = any(isinstance(label, str) for label in labels_of(operator.raw_operator))
    operator.outputs[0].set_type((data_types.StringTensorType if words else data_types.Int64TensorType)([rows]))
    operator.outputs[1].set_type(scores([rows, len(classes)]))


def _convert_boosted(scope: Any, operator: Any, container: Any) -> None:
    kind = type(operator.inputs[0].type)
    add_boosted(scope, operator, container, next((name for name, known in _TYPES.items() if known is kind), ""))


def _convert_voting(scope: Any, operator: Any, container: Any) -> None:
    """``flatten_transform`` shapes only the answer of ``transform``, which is not converted; skl2onnx refuses it all
    the same."""
    operator.raw_operator = copy.copy(operator.raw_operator)
    operator.raw_operator.flatten_transform = False
    get_converter(_VOTING[VotingClassifier])(scope, operator, container)


class _TreeContainer:
    """Mends the nodes of tree ensembles.

    protobuf refuses numpy's booleans where it expects integers. With FP64 inputs the thresholds go in as FP64
    tensors (as plain attributes they would be rounded), the scores, which are FP32 by definition, are cast back, and
    the inputs of trees that scikit-learn itself compares in FP32 are rounded first.
    """

    def __init__(self, container: Any, scope: Any, double: bool, rounds: bool) -> None:
        self._container, self._scope = container, scope
        self._double, self._rounds = double, rounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        plain = {name: _plain(value) for name, value in attributes.items()}
        if not self._double or not op_type.startswith("TreeEnsemble"):
            self._container.add_node(op_type, inputs, outputs, **plain)
            return
        for name in _TREE_NUMBERS & plain.keys():
            values = np.asarray(plain.pop(name), dtype=np.float64)
            plain[f"{name}_as_tensor"] = onnx.numpy_helper.from_array(values, name)
        plain["op_version"] = _TENSOR_ATTRIBUTES
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        if self._rounds:
            names[0] = self._cast(self._cast(names[0], TensorProto.FLOAT), TensorProto.DOUBLE)
        made = [outputs] if isinstance(outputs, str) else list(outputs)
        scores = made[-1]
        made[-1] = self._scope.get_unique_variable_name("tree_scores")
        self._container.add_node(op_type, names, made, **plain)
        self._cast(made[-1], TensorProto.DOUBLE, scores)

    def _cast(self, name: str, to: int, result: str = "") -> str:
        result = result or self._scope.get_unique_variable_name("cast")
        self._container.add_node("Cast", [name], [result], name=self._scope.get_unique_operator_name("Cast"), to=to)
        return result


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    imputer, double = operator.raw_operator, isinstance(operator.inputs[0].type, data_types.DoubleTensorType)
    missing = imputer.missing_values
    if double and isinstance(missing, float) and math.isnan(missing):
        container = _ImputerContainer(container, scope, imputer.statistics_)
    get_converter(_IMPUTER)(scope, operator, container)


class _ImputerContainer:
    """Says in other nodes what ``Imputer`` does, which ONNX Runtime has for FP32 alone."""

    def __init__(self, container: Any, scope: Any, fill: Any) -> None:
        self._container, self._scope, self._fill = container, scope, fill

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        if op_type != "Imputer":
            self._container.add_node(op_type, inputs, outputs, **attributes)
            return
        missing, fill = (self._scope.get_unique_variable_name(name) for name in ("missing", "fill"))
        self._container.add_initializer(fill, TensorProto.DOUBLE, [1, len(self._fill)], self._fill.tolist())
        self._container.add_node("IsNaN", inputs, missing, name=self._scope.get_unique_operator_name("IsNaN"))
        where = self._scope.get_unique_operator_name("Where")
        self._container.add_node("Where", [missing, fill, inputs], outputs, name=where)


def _plain(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(v, bool | np.bool_) for v in value):
        return [int(v) for v in value]
    return value


def _for(error: Exception) -> str:
    """Which class has no converter."""
    found = _CLASS.search(str(error))
    if found is None:
        return f": {_line(error)}"
    return f" for {found[1].partition('.')[0]}'s {found[1].rpartition('.')[2]}"


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
