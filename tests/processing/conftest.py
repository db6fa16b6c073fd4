"""Small real things: a tokenizer trained here, images drawn here, graphs of a few nodes."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

TEXTS = Path(__file__).parents[1] / "data" / "sentiment.jsonl.gz"


def read_texts(count: int) -> list[tuple[str, int]]:
    """Real texts with their labels: 1 for positive."""
    with gzip.open(TEXTS, "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [(row["text"], row["label"]) for row in rows]


def train_tokenizer() -> bytes:
    """A WordPiece tokenizer with BERT's special tokens, as JSON."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'salver[text]'")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for text, _ in read_texts(500)], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return train_tokenizer()


def image_file(pixels: np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    """An image file of ``uint8`` pixels."""
    images = pytest.importorskip("PIL.Image", reason="pip install 'salver[images]'")
    buffer = io.BytesIO()
    images.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def carried(*files: bytes) -> np.ndarray:
    """Bytes as they are carried in flight."""
    array = np.empty(len(files), object)
    array[:] = [file.decode("latin-1") for file in files]
    return array


def texts(*values: str) -> np.ndarray:
    """Texts as they are carried in flight."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def embedder(path: Path, vocabulary: int, width: int = 16, seed: int = 0) -> Path:
    """A graph from tokens to one vector for each, ``last_hidden_state``; each depends on the row's other tokens."""
    rng = np.random.default_rng(seed)
    table = numpy_helper.from_array(rng.standard_normal((vocabulary, width)).astype(np.float32), "table")
    weights = numpy_helper.from_array((rng.standard_normal((width, width)) / 4).astype(np.float32), "weights")
    axis = numpy_helper.from_array(np.array([2], np.int64), "axis")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counted", "axis"], ["mask"]),
        helper.make_node("Mul", ["tokens", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"]),
        helper.make_node("Add", ["tokens", "sum"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "weights"], ["turned"]),
        helper.make_node("Tanh", ["turned"], ["last_hidden_state"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", width])]
    graph = helper.make_graph(nodes, "embedder", inputs, outputs, [table, weights, axis, one])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(proto, path)
    return path


def linear(path: Path, weights: np.ndarray, bias: np.ndarray, shape: list[int | str], name: str = "x") -> Path:
    """A graph ``logits = flatten(x) @ weights + bias``."""
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], weights.shape[1]])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "weights"),
            numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(proto, path)
    return path
