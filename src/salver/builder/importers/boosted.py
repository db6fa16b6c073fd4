"""What the importers of boosting libraries have in common: trees to ONNX, or the model as it is."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from salver.backends import BACKENDS
from salver.backends.boosted import Boosted
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.forest import Forest, Split, write_forest
from salver.builder.importers.magic import name_by_content
from salver.builder.importers.native import finish_native, native_model
from salver.builder.importers.onnx_batch import Leading
from salver.builder.importers.onnx_finish import Draft, backend_versions, finish
from salver.builder.importers.probes import Probe, from_data, synthetic
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ParityFailed,
    Unimplemented,
)
from salver.core.model import Step, digest_bytes, digest_file
from salver.core.tensors import Signature, TensorSpec

_RUNGS: Final = ("FP32", "FP64")
_BORDER_ROWS: Final = 96
_LARGEST: Final = float(np.finfo(np.float32).max)
_PLAIN_NUMBER: Final = re.compile(r"-?\d+")


class Opened(msgspec.Struct, frozen=True):
    """A model that its library has opened.

    Args:
        model: the library's own object, of which `Forest` and bytes are made.
        boosted: as the library's backend runs it.
        step: where it comes from.
        names: of the features, where it knows them.
        estimator: that predicts, where it came in memory with a scikit-learn interface.
        classes: of that estimator, in order.
    """

    model: Any
    boosted: Boosted
    step: Step
    names: tuple[str, ...] = ()
    estimator: Any = None
    classes: tuple[Any, ...] = ()


class BoostedImporter(Importer):
    """Reads models of one boosting library: a file in its own format, or an object in memory.

    The original is the library itself. The trees become an ONNX graph whose borders are the library's, with inputs of
    FP32 where that is enough, else FP64; what has no graph is kept as it is and run by the library.
    """

    module: ClassVar[str]
    """Top module of its objects."""
    suffix: ClassVar[str]
    """Of the file that is kept."""

    @abc.abstractmethod
    def read(self, data: bytes, name: str) -> Any:
        """The library's object in a file.

        Raises:
            CorruptArtifact: it holds none, or is damaged.
        """

    @abc.abstractmethod
    def unwrap(self, source: Any) -> Any:
        """The library's object behind one with a scikit-learn interface.

        Raises:
            InvalidArgument: it is not fitted.
        """

    @abc.abstractmethod
    def open(self, model: Any) -> Boosted:
        """The object, ready to run."""

    @abc.abstractmethod
    def forest(self, model: Any) -> Forest:
        """Its trees.

        Raises:
            Unimplemented: it has something that the graph cannot say; names it.
        """

    @abc.abstractmethod
    def dump(self, model: Any) -> bytes:
        """The object as a file in the library's own format."""

    @abc.abstractmethod
    def names(self, model: Any) -> list[str]:
        """Names of its features; empty where it knows none."""

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.is_file() and name_by_content(source) == self.name
        return any(kind.__module__.partition(".")[0] == self.module for kind in type(source).__mro__)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        opened = self._open(source)
        if data is not None:
            _check_order(opened.names, data)
        why = []
        try:
            forest = self.forest(opened.model)
        except Unimplemented as error:
            why.append(error.message)
            forest = None
        draft = self._draft(opened, forest, workdir, data, options)
        for number in _RUNGS:
            if forest is None:
                break
            graph = write_forest(forest, number, name_classes(opened.classes or opened.boosted.classes))
            note = "" if number == "FP32" else f"numbers are taken as FP64: {why[0]}"
            try:
                return finish(
                    graph, msgspec.structs.replace(draft, notes=(*draft.notes, note) if note else draft.notes)
                )
            except (ParityFailed, Unimplemented, CorruptArtifact) as error:
                why.append(f"with {number}: {error.message}")
        path = workdir / f"model{self.suffix}"
        path.write_bytes(self.dump(opened.model))
        native = native_model(self.name, self._native_signature(opened), {path.name: path})
        return finish_native(native, draft, ". ".join(why))

    def _open(self, source: Any) -> Opened:
        if isinstance(source, Path):
            if not source.is_file():
                raise NotFound(f"no such model file: '{source}'")
            model = self.read(source.read_bytes(), source.name)
            step = Step(action="source", name=source.name, output_digest=digest_file(source))
            return Opened(model, self.open(model), step, tuple(self.names(model)))
        model = self.unwrap(source)
        step = Step(action="source", name=type(source).__name__, output_digest=digest_bytes(self.dump(model)))
        estimator = None if model is source else source
        classes = tuple(np.asarray(getattr(estimator, "classes_", ())).tolist())
        return Opened(model, self.open(model), step, tuple(self.names(model)), estimator, classes)

    def _draft(
        self, opened: Opened, forest: Forest | None, workdir: Path, data: Dataset | None, options: ImportOptions
    ) -> Draft:
        backend = BACKENDS.get(self.name)()
        specs = tuple(
            msgspec.structs.replace(s, datatype="FP64") if s.datatype == "FP32" else s for s in opened.boosted.inputs
        )
        original = _run(opened)
        signature = Signature(inputs=specs, outputs=())
        if data is not None:
            probe = from_data(data, signature)
        elif forest is not None:
            probe = Probe({specs[0].name: _borders(forest)}, _BORDER_ROWS, "synthetic")
        else:
            probe = synthetic(signature, original, batched=True)
        classes = tuple(str(c) for c in opened.classes or opened.boosted.classes)
        return Draft(
            importer=self.name,
            original=original,
            described=", ".join(f"{name} {version}" for name, version in backend.versions().items()),
            probe=probe,
            leading=Leading(True),
            workdir=workdir,
            options=options,
            lineage=(opened.step,),
            tools={**backend_versions(), **backend.versions()},
            labels={"probabilities": classes},
        )

    def _native_signature(self, opened: Opened) -> Signature:
        signature = opened.boosted.signature
        texts = any(not isinstance(c, int) for c in name_classes(opened.classes or opened.boosted.classes))
        return Signature(
            inputs=signature.inputs,
            outputs=tuple(
                TensorSpec(name=s.name, datatype="BYTES", shape=s.shape) if s.name == "label" and texts else s
                for s in signature.outputs
            ),
        )


def _run(opened: Opened) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """The original: the estimator's own methods, or the library's."""
    estimator = opened.estimator
    labels = np.array(name_classes(opened.classes or opened.boosted.classes), dtype=object)

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            if estimator is None or len(opened.boosted.inputs) > 1:
                found = dict(opened.boosted.answer(inputs))
            else:
                (x,) = inputs.values()
                found = _ask(estimator, x)
        except (ValueError, TypeError) as error:
            raise FailedPrecondition(f"the original refuses the examples: {error}") from error
        if len(labels) and "probabilities" in found:
            chosen = labels[np.asarray(found["probabilities"]).argmax(axis=1)]
            found["label"] = chosen.astype(np.int64) if isinstance(labels[0], int) else chosen
        return found

    return run


def _ask(estimator: Any, x: Array) -> dict[str, Array]:
    if hasattr(estimator, "predict_proba"):
        found = np.asarray(estimator.predict_proba(x))
        return {"label": found.argmax(axis=1), "probabilities": found}
    return {"prediction": np.asarray(estimator.predict(x)).reshape(len(x), -1)}


def name_classes(classes: tuple[Any, ...]) -> tuple[Any, ...]:
    """What labels are for each class: whole numbers, or texts; empty where they are the numbers of the classes."""
    if all(_PLAIN_NUMBER.fullmatch(str(c)) for c in classes):
        numbers = tuple(int(c) for c in classes)
        return () if numbers == tuple(range(len(numbers))) else numbers
    return tuple(str(c) for c in classes)


def _borders(forest: Forest) -> Array:
    """Made-up rows at the forest's own borders: on them, beside them, and without a value."""
    random = np.random.default_rng(0)
    known: list[list[float]] = [[0.0] for _ in range(forest.features)]
    for tree in forest.trees[:200]:
        for node in tree.values():
            if isinstance(node, Split):
                borders = [b for pair in node.ranges for b in pair if np.isfinite(b)] or [node.most]
                known[node.feature] += borders
    columns = []
    for values in known:
        chosen = np.float32(np.clip(random.choice(np.array(values), _BORDER_ROWS), -_LARGEST, _LARGEST))
        away = random.choice([-0.5, -1e-7, 1e-7, 0.5], _BORDER_ROWS)  # only FP64 sees the small ones
        beside = chosen + away * np.maximum(np.abs(chosen), 1.0)
        around = [chosen, np.nextafter(chosen, _LARGEST), np.nextafter(chosen, -_LARGEST), beside]
        moved = np.choose(random.choice(len(around), _BORDER_ROWS), around)
        moved = np.clip(moved, -_LARGEST, _LARGEST)  # CatBoost has borders at the end of FP32
        columns.append(np.where(random.random(_BORDER_ROWS) < 0.05, np.nan, moved))
    return np.stack(columns, axis=1)


def _check_order(names: tuple[str, ...], data: Dataset) -> None:
    given = [c.name for c in data.columns]
    if sorted(given) == sorted(names) and given != list(names):
        at = next(i for i, (a, b) in enumerate(zip(given, names, strict=True)) if a != b)
        raise InvalidArgument(
            f"'{data.source}': column {at + 1} is '{given[at]}', the model was fitted with '{names[at]}' there; put "
            "the columns in the model's order"
        )
