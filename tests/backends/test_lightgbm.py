"""The LightGBM backend passes the suite; and names classes as the signature does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.core.errors import CorruptArtifact
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.testing.backends import BackendConformance, Case

lightgbm = pytest.importorskip("lightgbm", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_diabetes, load_wine  # noqa: E402  # after the check

from salver.backends._lightgbm import LightgbmBackend  # noqa: E402

WINE, KINDS = load_wine(return_X_y=True)


@pytest.fixture
def classifier(tmp_path: Path) -> Model:
    train = lightgbm.Dataset(WINE, KINDS, params={"verbose": -1})
    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    lightgbm.train(settings, train, 5).save_model(tmp_path / "c.txt")
    return _model(tmp_path / "c.txt")


class TestLightgbm(BackendConformance):
    backend = LightgbmBackend

    @pytest.fixture
    def cases(self, tmp_path: Path, classifier: Model) -> list[Case]:
        rows = WINE[::50].copy()
        rows[1, 3] = np.nan
        expected = lightgbm.Booster(model_file=classifier.path).predict(rows)
        table, target = load_diabetes(return_X_y=True)
        linear = lightgbm.LGBMRegressor(linear_tree=True, n_estimators=5, verbose=-1, n_jobs=1).fit(table, target)
        linear.booster_.save_model(tmp_path / "l.txt")
        return [
            Case(
                model=classifier,
                inputs={"x": rows},
                expected={"label": expected.argmax(axis=1), "probabilities": expected},
            ),
            Case(
                model=_model(tmp_path / "l.txt"),
                inputs={"x": table[:4]},
                expected={"prediction": linear.booster_.predict(table[:4])[:, None]},
                atol=1e-9,
            ),
        ]


def _model(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="lightgbm", signature=LightgbmBackend().describe(blob), blobs=(blob,))


@pytest.mark.parametrize(("names", "datatype"), [(("a", "b", "c"), "BYTES"), (("3", "5", "7"), "INT64")])
def test_labels_are_what_the_signature_names(classifier: Model, names: tuple[str, ...], datatype: str) -> None:
    label, scores = classifier.signature.outputs
    outputs = (
        TensorSpec(name=label.name, datatype=datatype, shape=label.shape),
        msgspec.structs.replace(scores, labels=names),
    )
    signature = Signature(inputs=classifier.signature.inputs, outputs=outputs)
    with LightgbmBackend().load(msgspec.structs.replace(classifier, signature=signature), SessionOptions()) as session:
        given = session.run({"x": WINE})["label"]
    wanted = np.array(names)[KINDS]
    assert (given.astype(str) == wanted).mean() > 0.9


def test_a_file_that_ends_between_two_trees_is_refused(classifier: Model, tmp_path: Path) -> None:
    text = classifier.path.read_text()
    path = tmp_path / "cut.txt"
    path.write_text(text[: text.index("Tree=6")])
    with pytest.raises(CorruptArtifact, match="cut off"):
        LightgbmBackend().describe(Blob.of(path))
