"""From what people have at hand to an answer: texts, image files and rows, built, sealed, verified and served."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import find_backend
from salver.builder.build import build
from salver.bundle import Bundle, Contents, make_golden, seal
from salver.cli._predict import predict
from salver.client import Client
from salver.core.errors import CorruptArtifact, InvalidArgument, SalverError
from salver.core.model import Blob, Model
from salver.processing import open_processed
from salver.processing.declared import attach, read_steps
from salver.server import Server, ServeSettings
from tests.processing.conftest import embedder, image_file, linear, read_texts, texts

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'salver[text]'")
images = pytest.importorskip("PIL.Image", reason="pip install 'salver[images]'")
datasets = pytest.importorskip("sklearn.datasets", reason="pip install 'salver[sklearn]'")
linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install 'salver[sklearn]'")

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTIMENT_STEPS = """
outputs = ["label", "score"]

[[before]]
step = "tokenizer"
file = "tokenizer.json"
max_length = 64

[[after]]
step = "activation"
input = "logit"
output = "score"
kind = "sigmoid"

[[after]]
step = "threshold"
input = "score"
yes = "positive"
no = "negative"
"""
DIGIT_STEPS = """
outputs = ["label", "score"]

[[before]]
step = "image"
mode = "gray"
filter = "nearest"

[[after]]
step = "activation"
input = "logits"

[[after]]
step = "labels"
input = "probabilities"
file = "names.txt"
"""
TABLE_STEPS = """
[[before]]
step = "tabular"
columns = [
  { name = "age", mean = 40.0, scale = 20.0 },
  { name = "color", kind = "category", values = ["red", "green", "blue"] },
]

[[after]]
step = "labels"
input = "logits"
labels = ["no", "yes"]
"""


def sentiment_graph(path: Path, weights: np.ndarray, bias: float) -> Path:
    """The sum of one weight for each token that counts, ``logit`` [batch, 1]."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["found", "counted"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["logit"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch", 1])]
    constants = [
        numpy_helper.from_array(weights.astype(np.float32), "weights"),
        numpy_helper.from_array(np.array([bias], np.float32), "bias"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    graph = helper.make_graph(nodes, "sentiment", inputs, outputs, constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: bytes) -> Bundle:
    """Texts in, one of two words out; built on real texts."""
    folder = tmp_path_factory.mktemp("sentiment")
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    (folder / "steps.toml").write_text(SENTIMENT_STEPS)
    rows = read_texts(1200)
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.enable_truncation(64)
    counts = np.zeros((900, tokenizer.get_vocab_size()))
    for row, (text, _) in enumerate(rows[:900]):
        np.add.at(counts[row], tokenizer.encode(text).ids, 1)
    fitted = linear_model.LogisticRegression(C=0.1, max_iter=500).fit(counts, [label for _, label in rows[:900]])
    model = sentiment_graph(folder / "sentiment.onnx", fitted.coef_[0], float(fitted.intercept_[0]))
    names = ("negative", "positive")
    (folder / "val.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": names[label]}) + "\n" for text, label in rows[900:])
    )
    return build(
        model,
        folder / "val.jsonl",
        processing=folder / "steps.toml",
        output=folder / "sentiment.salver",
        max_drop="5pp",
        budget_s=4.0,
        cache=folder / "cache",
    )


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[bytes, str]]]:
    """Real digits as JPEG files, a folder for each class, and some that are not in it."""
    folder = tmp_path_factory.mktemp("digits") / "val"
    digits = datasets.load_digits()
    big = np.kron((digits.images * 15.9).astype(np.uint8), np.ones((3, 3), np.uint8))
    kept = []
    for number, (pixels, label) in enumerate(zip(big[:360], digits.target[:360], strict=True)):
        data = image_file(pixels, "JPEG", quality=95)
        if number < 340:
            (folder / DIGIT_NAMES[label]).mkdir(parents=True, exist_ok=True)
            (folder / DIGIT_NAMES[label] / f"{number}.jpg").write_bytes(data)
        else:
            kept.append((data, DIGIT_NAMES[label]))
    return folder, kept


def digit_network(path: Path) -> Path:
    """A convolution with fixed filters and a head that was trained on digits not in the validation files."""
    digits = datasets.load_digits()
    pixels = np.kron((digits.images[400:1400] * 15.9).astype(np.uint8), np.ones((3, 3), np.uint8)) / np.float32(255)
    filters = np.random.default_rng(0).standard_normal((8, 1, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "filters"], ["found"], strides=[2, 2]),
        helper.make_node("Relu", ["found"], ["kept"]),
        helper.make_node("MaxPool", ["kept"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 24, 24])]
    constants = [numpy_helper.from_array(filters, "filters")]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 200])]
    made = helper.make_model(
        helper.make_graph(nodes, "features", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    features = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"pixels": pixels[:, None]})[0]
    head = linear_model.LogisticRegression(max_iter=200).fit(features, digits.target[400:1400])
    constants += [
        numpy_helper.from_array(head.coef_.T.astype(np.float32), "weights"),
        numpy_helper.from_array(head.intercept_.astype(np.float32), "bias"),
    ]
    nodes.append(helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])]
    graph = helper.make_graph(nodes, "digits", inputs, outputs, constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, digit_files: tuple[Path, list[tuple[bytes, str]]]) -> Bundle:
    """Image files in, the name of a digit out; built on a folder of JPEG files."""
    folder = tmp_path_factory.mktemp("digits-bundle")
    (folder / "names.txt").write_text("\n".join(DIGIT_NAMES) + "\n")
    (folder / "steps.toml").write_text(DIGIT_STEPS)
    return build(
        digit_network(folder / "digits.onnx"),
        digit_files[0],
        processing=folder / "steps.toml",
        output=folder / "digits.salver",
        max_drop="5pp",
        budget_s=4.0,
        cache=folder / "cache",
    )


def model_of(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Rows of an age and a color in, yes or no out: yes from 40 on, unless the color is red."""
    folder = tmp_path_factory.mktemp("table")
    weights = np.array([[0, 1], [0, -9], [0, 0], [0, 0]])
    plain = model_of(linear(folder / "table.onnx", weights, np.zeros(2), ["batch", 4]))
    (folder / "steps.toml").write_text(TABLE_STEPS)
    model = attach(plain, read_steps(folder / "steps.toml"))
    rows = {"age": np.array([50.0, 20.0, 70.0]), "color": texts("green", "blue", "red")}
    return seal(folder / "table.salver", Contents(name="table", model=model, golden=make_golden(model, rows)))


@pytest.fixture(scope="module")
def server(sentiment: Bundle, digits: Bundle, table: Bundle) -> Iterator[Server]:
    sources = [str(bundle.path) for bundle in (sentiment, digits, table)]
    with Server(ServeSettings.from_data({"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "sources": sources})) as running:
        yield running


def post(server: Server, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, data, {"content-type": "application/json", **given})
        answer = connection.getresponse()
        size = answer.getheader("inference-header-content-length")
        return answer.status, json.loads(answer.read()[: int(size) if size else None])
    finally:
        connection.close()


# ---------------------------------------------------------------------------------------------------- build and seal


def test_the_signature_is_that_of_what_clients_send(sentiment: Bundle, digits: Bundle, table: Bundle) -> None:
    seen = {
        bundle.name: (
            [(spec.name, spec.datatype, spec.shape) for spec in bundle.signature.inputs],
            [(spec.name, spec.datatype) for spec in bundle.signature.outputs],
        )
        for bundle in (sentiment, digits, table)
    }
    assert seen == {
        "sentiment": ([("text", "BYTES", ("batch",))], [("label", "BYTES"), ("score", "FP32")]),
        "digits": ([("image", "BYTES", ("batch",))], [("label", "BYTES"), ("score", "FP32")]),
        "table": (
            [("age", "FP64", ("batch",)), ("color", "BYTES", ("batch",))],
            [("label", "BYTES"), ("score", "FP32")],
        ),
    }
    assert [spec.name for spec in sentiment.model.signature.inputs] == ["input_ids", "attention_mask"]


def test_quality_is_that_of_the_whole_path(sentiment: Bundle, digits: Bundle) -> None:
    for bundle, least in ((sentiment, 0.6), (digits, 0.8)):
        record = bundle.record
        assert record is not None
        evaluation = record.sealed.evaluation
        assert evaluation is not None
        (quality,) = evaluation.certify or evaluation.steer
        assert quality.metric == "accuracy"
        assert quality.baseline > least, "labels are compared with what clients get"
        assert record.hints["merge"], record.hints["why"]


def test_parity_was_proved_on_what_the_steps_made_of_real_examples(sentiment: Bundle, digits: Bundle) -> None:
    for bundle, output in ((sentiment, "logit"), (digits, "logits")):
        certificate = bundle.parity
        assert certificate is not None
        assert certificate.inputs == "data"
        assert [one.name for one in certificate.outputs] == [output]


def test_golden_requests_are_raw(sentiment: Bundle, digits: Bundle, table: Bundle) -> None:
    assert all(isinstance(g.inputs["text"][0], str) for g in sentiment.golden)
    assert all(g.inputs["image"][0].startswith("\xff\xd8\xff") for g in digits.golden)
    assert all(set(g.inputs) == {"age", "color"} for g in table.golden)
    for bundle in (sentiment, digits, table):
        report = bundle.verify()
        assert report.ok, report.wrong
        assert report.replay is not None
        assert report.replay.requests > 1


def test_a_bundle_predicts_from_files_as_by_hand(
    digits: Bundle, digit_files: tuple[Path, list[tuple[bytes, str]]]
) -> None:
    folder, kept = digit_files
    session = onnxruntime.InferenceSession(digits.model.blobs[0].read())
    for data, _ in kept:
        pixels = np.asarray(images.open(io.BytesIO(data)), np.float32)[None, None] / 255
        scores = session.run(None, {"pixels": pixels})[0][0]
        answer = digits.predict({"image": np.array([data], object)})
        assert answer["label"].tolist() == [DIGIT_NAMES[int(scores.argmax())]]
        expected = np.exp(scores.max()) / np.exp(scores).sum()
        np.testing.assert_allclose(answer["score"], [expected], rtol=1e-4)
    answers = predict(digits, str(folder))
    files = sorted(folder.glob("*/*.jpg"))
    right = [file.parent.name == label for file, label in zip(files, answers["label"], strict=True)]
    assert np.mean(right) > 0.8


def test_vectors_of_texts_are_those_made_by_hand(tmp_path: Path, tokenizer_json: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    (tmp_path / "steps.toml").write_text(
        '[[before]]\nstep = "tokenizer"\nfile = "tokenizer.json"\n'
        '[[after]]\nstep = "pooling"\ninput = "last_hidden_state"\n[[after]]\nstep = "normalize"\n'
    )
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
    plain = model_of(embedder(tmp_path / "embedder.onnx", tokenizer.get_vocab_size()))
    model = attach(plain, read_steps(tmp_path / "steps.toml"))
    session = onnxruntime.InferenceSession(plain.path)
    given = [text for text, _ in read_texts(20)]
    with open_processed(model) as processed:
        together = processed.run({"text": texts(*given)})["embedding"]
    for text, vector in zip(given, together, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        states = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        mean = states.mean(axis=0)
        assert vector @ (mean / np.linalg.norm(mean)) >= 0.9999


def test_the_same_contents_give_the_same_bundle(table: Bundle, tmp_path: Path) -> None:
    again = seal(tmp_path / "again.salver", Contents(name="table", model=table.model, golden=table.golden))
    assert again.digest == table.digest
    assert again.model.processing == msgspec.structs.replace(
        table.model.processing, files=again.model.processing.files if again.model.processing else ()
    )


# ------------------------------------------------------------------------------------------------------------- serve


def test_texts_over_rest(server: Server, sentiment: Bundle) -> None:
    given = [text for text, _ in read_texts(912)[900:]]
    expected = sentiment.predict({"text": np.array(given)})["label"].tolist()
    assert set(expected) == {"positive", "negative"}
    tensor = {"name": "text", "shape": [len(given)], "datatype": "BYTES", "data": given}
    status, answer = post(server, "/v2/models/sentiment/infer", {"inputs": [tensor]})
    assert status == 200, answer
    assert {o["name"]: o["data"] for o in answer["outputs"]}["label"] == expected
    status, answer = post(server, "/predict/sentiment", {"instances": given})
    assert [one["label"] for one in answer["predictions"]] == expected
    status, answer = post(server, "/v1/models/sentiment:predict", {"instances": given})
    assert [one["label"] for one in answer["predictions"]] == expected
    status, answer = post(server, "/invocations/sentiment", {"dataframe_records": [{"text": t} for t in given]})
    assert status == 200, answer
    assert [one["label"] for one in answer["predictions"]] == expected


def test_image_files_in_every_form(
    server: Server, digits: Bundle, digit_files: tuple[Path, list[tuple[bytes, str]]]
) -> None:
    for data, _ in digit_files[1][:3]:
        expected = digits.predict({"image": np.array([data], object)})["label"].tolist()
        encoded = base64.b64encode(data).decode()
        status, answer = post(server, "/predict/digits", data, content_type="image/jpeg")
        assert status == 200, answer
        assert [one["label"] for one in answer["predictions"]] == expected
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]}
        _, answer = post(server, "/v2/models/digits/infer", {"inputs": [tensor]})
        assert answer["outputs"][0]["data"] == expected
        _, answer = post(server, "/v2/models/digits/infer", data, inference_header_content_length="0")
        assert answer["outputs"][0]["parameters"]["binary_data_size"] == 4 + len(expected[0])
        _, answer = post(server, "/v1/models/digits:predict", {"instances": [{"b64": encoded}]})
        assert [one["label"] for one in answer["predictions"]] == expected
        _, answer = post(server, "/predict/digits", {"instances": [encoded]})
        assert [one["label"] for one in answer["predictions"]] == expected
        for address in (server.url, f"grpc://{server.grpc_address}"):
            with Client(address) as client:
                label = client.infer("digits", {"image": np.array([data], object)}).outputs["label"]
            assert [value.decode() for value in label] == expected


def test_rows_of_a_table(server: Server) -> None:
    rows = [{"age": 41, "color": "green"}, {"age": 39.5, "color": "blue"}, {"age": 99, "color": "red"}]
    _, answer = post(server, "/predict/table", {"instances": rows})
    assert [one["label"] for one in answer["predictions"]] == ["yes", "no", "no"]
    frame = {"columns": ["color", "age"], "data": [[row["color"], row["age"]] for row in rows]}
    _, answer = post(server, "/invocations/table", {"dataframe_split": frame})
    assert [one["label"] for one in answer["predictions"]] == ["yes", "no", "no"]


def test_metadata_tells_what_clients_send_and_which_steps_there_are(server: Server) -> None:
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", "/v2/models/digits")
        told = json.loads(connection.getresponse().read())
        connection.request("GET", "/openapi.json")
        described = connection.getresponse().read()
    finally:
        connection.close()
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [("image", "BYTES", [-1])]
    assert [one["name"] for one in told["outputs"]] == ["label", "score"]
    assert "'processing': ['image', 'activation', 'labels']" in str(told)
    assert b"base64" in described


@pytest.mark.parametrize(
    ("path", "instance", "message"),
    [
        ("/predict/digits", "bm8gaW1hZ2U=", "no image file"),
        ("/predict/digits", "no image 🍐", "expected the bytes of an image file"),
        ("/predict/table", {"age": 20, "color": "mauve"}, "got 'mauve', expected one of red, green, blue"),
        ("/predict/table", {"age": float("nan"), "color": "red"}, "the number is missing"),
        ("/predict/table", {"age": 20}, "expected an object with 'age', 'color'"),
        ("/predict/sentiment", "x" * 100_001, "100001 characters, at most 100000"),
    ],
)
def test_bad_rows_are_refused_with_what_is_wrong(server: Server, path: str, instance: Any, message: str) -> None:
    status, answer = post(server, path, {"instances": [instance]})
    assert status in (400, 413), answer
    assert message in str(answer)


def test_a_bad_file_fails_alone_among_others(server: Server, digit_files: tuple[Path, list[tuple[bytes, str]]]) -> None:
    good = digit_files[1][0][0]
    statuses: dict[int, int] = {}

    def send(number: int) -> None:
        data = good[:-200] if number % 4 == 0 else good
        statuses[number] = post(server, "/predict/digits", data, content_type="image/jpeg")[0]

    threads = [threading.Thread(target=send, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {number: 400 if number % 4 == 0 else 200 for number in range(24)}


# --------------------------------------------------------------------------------------------------------- bad steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("", "declares no step"),
        ("[[before]]\n", "expected step = "),
        ('[[before]]\nstep = "tokeniser"\n', "Did you mean 'tokenizer'"),
        ('[[before]]\nstep = "tabular"\ncolumns = []\ncolor = 1\n', "color"),
        ('[[middle]]\nstep = "image"\n', "middle"),
        ("not toml", "is no file of processing steps"),
        ('[[before]]\nstep = "tokenizer"\nfile = "missing.json"\n', "no such file"),
        ('[[after]]\nstep = "labels"\ninput = "nothing"\nlabels = ["a"]\n', "nothing gives 'nothing'"),
        ('outputs = ["nothing"]\n[[after]]\nstep = "labels"\ninput = "logits"\nlabels = ["a", "b"]\n', "outputs"),
        ('[[before]]\nstep = "tabular"\ncolumns = [{name = "a"}]\n', r"the model takes FP32 \[batch, 4\]"),
        ('[[before]]\nstep = "pooling"\ninput = "x"\n', "nothing gives 'x', which it reads"),
    ],
)
def test_steps_that_do_not_fit_are_refused_by_name(tmp_path: Path, steps: str, message: str) -> None:
    path = tmp_path / "steps.toml"
    path.write_text(steps)
    plain = model_of(linear(tmp_path / "table.onnx", np.zeros((4, 2)), np.zeros(2), ["batch", 4]))
    with pytest.raises(SalverError, match=message):
        attach(plain, read_steps(path))
    with pytest.raises(SalverError, match="no such file"):
        read_steps(tmp_path / "other.toml")


def test_a_file_that_was_altered_is_found(digits: Bundle, tmp_path: Path) -> None:
    data = bytearray(digits.path.read_bytes())
    at = data.index(b"zero\none\ntwo")
    data[at : at + 4] = b"none"
    other = tmp_path / "altered.salver"
    other.write_bytes(data)
    with pytest.raises(
        CorruptArtifact, match=r"the file 'salver/processing/names.txt' of the processing steps is damaged"
    ):
        Bundle.open(other)
    processing = digits.model.processing
    assert processing is not None
    (names,) = processing.files
    (tmp_path / "names.txt").write_text("\n".join(reversed(DIGIT_NAMES)) + "\n")
    swapped = msgspec.structs.replace(names, path=tmp_path / "names.txt", offset=0)
    changed = msgspec.structs.replace(processing, files=(swapped,))
    with pytest.raises(CorruptArtifact, match=r"'names.txt', which a step reads"):
        open_processed(msgspec.structs.replace(digits.model, processing=changed))


def test_data_that_a_step_refuses_ends_the_build_with_its_row(tmp_path: Path) -> None:
    model = linear(tmp_path / "table.onnx", np.zeros((4, 2)), np.zeros(2), ["batch", 4])
    (tmp_path / "steps.toml").write_text(TABLE_STEPS)
    (tmp_path / "val.csv").write_text("age,color,label\n1,red,no\n2,pink,no\n3,blue,yes\n4,blue,yes\n")
    with pytest.raises(InvalidArgument, match=r"'color', row 1: got 'pink'"):
        build(
            model,
            tmp_path / "val.csv",
            processing=tmp_path / "steps.toml",
            output=tmp_path / "out.salver",
            cache=tmp_path / "cache",
        )
    assert not (tmp_path / "out.salver").exists()
