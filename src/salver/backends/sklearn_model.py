"""What a scikit-learn model answers, by name: the same for the original of an import and for the native backend."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import MissingExtra

try:
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector
except ImportError as missing:
    raise MissingExtra("running a scikit-learn model", str(missing.name), "sklearn") from None

LABEL: Final = "label"
PROBABILITIES: Final = "probabilities"
SCORES: Final = "scores"


def chosen(estimator: Any) -> Any:
    """What a search over settings found best, which is what answers; every other model itself."""
    return getattr(estimator, "best_estimator_", estimator)


def output_names(estimator: Any) -> tuple[str, ...]:
    """What the outputs of a model with one target are called, in order."""
    if is_classifier(estimator):
        if hasattr(estimator, "predict_proba"):
            return (LABEL, PROBABILITIES)
        return (LABEL, SCORES) if hasattr(estimator, "decision_function") else (LABEL,)
    if is_outlier_detector(estimator):
        return (LABEL, SCORES)
    if is_clusterer(estimator):
        return (LABEL, "distances") if hasattr(estimator, "transform") else (LABEL,)
    return ("prediction",) if hasattr(estimator, "predict") else ("transformed",)


def predict(estimator: Any, table: Any) -> dict[str, Array]:
    """A model's own answers, in the order of `output_names`. Where several classes are told at once, each has
    probabilities of its own: ``probabilities_1`` and so on."""
    if is_classifier(estimator):
        return _classify(estimator, table)
    if is_outlier_detector(estimator):
        labels, scores = estimator.predict(table), estimator.decision_function(table)
        return {LABEL: labels.reshape(-1, 1), SCORES: scores.reshape(-1, 1)}
    if is_clusterer(estimator):
        found = {LABEL: np.asarray(estimator.predict(table))}
        if hasattr(estimator, "transform"):
            found["distances"] = np.asarray(estimator.transform(table))
        return found
    name = "prediction" if hasattr(estimator, "predict") else "transformed"
    answers = estimator.predict(table) if hasattr(estimator, "predict") else estimator.transform(table)
    answers = _text(np.asarray(answers.toarray() if hasattr(answers, "toarray") else answers))
    return {name: answers.reshape(len(answers), -1)}


def _classify(estimator: Any, table: Any) -> dict[str, Array]:
    labels = _dense(estimator.predict(table))
    # CatBoost gives a column.
    found = {LABEL: _text(labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels)}
    if hasattr(estimator, "predict_proba"):
        given = estimator.predict_proba(table)
        if isinstance(given, list):
            return {**found, **{f"{PROBABILITIES}_{i + 1}": np.asarray(p) for i, p in enumerate(given)}}
        return {**found, PROBABILITIES: _dense(given)}
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(table))
        found[SCORES] = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
    return found


def _dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def _text(labels: Array) -> Array:
    return labels.astype(str).astype(object) if labels.dtype.kind in "OUS" else labels
