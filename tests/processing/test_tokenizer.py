"""The tokenizer step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, InvalidArgument, TooLarge
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance
from tests.processing.conftest import read_texts, texts

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'salver[text]'")


def token_inputs(*names: str, length: int | str = "tokens", datatype: str = "INT64") -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, datatype=datatype, shape=("batch", length)) for name in names)


class TestTokenizer(ProcessingConformance):
    step = {"step": "tokenizer", "file": "tokenizer.json"}
    wanted = token_inputs("input_ids", "attention_mask")
    pads = True

    @pytest.fixture(autouse=True)
    def _file(self, tokenizer_json: bytes) -> None:
        self.files = {"tokenizer.json": tokenizer_json}

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"text": texts(*(text for text, _ in read_texts(5)), "")}

    def test_tokens_are_those_of_the_library(self, rows: dict[str, Array], tokenizer_json: bytes) -> None:
        step = self.make()
        self.bind(step)
        made = step.run(rows)
        own = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
        for row, text in enumerate(rows["text"]):
            ids = own.encode(text).ids
            assert made["input_ids"][row].tolist()[: len(ids)] == ids
            assert made["attention_mask"][row].sum() == len(ids)
            assert not made["input_ids"][row, len(ids) :].any()  # [PAD] is 0
        assert made["input_ids"].shape[1] == made["attention_mask"].sum(axis=1).max()

    def test_a_graph_of_fixed_length_and_narrow_integers_gets_these(self) -> None:
        self.wanted = token_inputs("ids", "mask", "segment_ids", length=7, datatype="INT32")
        step = self.make()
        self.bind(step)
        made = step.run({"text": texts("a good film that is too long for seven tokens", "no")})
        assert {name: (array.shape, array.dtype) for name, array in made.items()} == dict.fromkeys(
            ("ids", "mask", "segment_ids"), ((2, 7), np.dtype(np.int32))
        )
        assert made["ids"][0, -1] == 3, "the last token that is kept is [SEP]"

    def test_pairs_have_segments(self) -> None:
        self.wanted = token_inputs("input_ids", "attention_mask", "token_type_ids")
        step = self.make({"pair": "second"})
        self.bind(step)
        made = step.run({"text": texts("good"), "second": texts("bad film")})
        kinds, ids = made["token_type_ids"][0], made["input_ids"][0]
        first = ids.tolist().index(3) + 1
        assert not kinds[:first].any()
        assert kinds[first:].all()

    def test_what_is_too_long_is_cut_or_refused_as_declared(self) -> None:
        long = texts("fine", "good " * 50)
        cut = self.make({"max_length": 8})
        self.bind(cut)
        assert cut.run({"text": long})["input_ids"].shape == (2, 8)
        refusing = self.make({"max_length": 8, "too_long": "refuse"})
        self.bind(refusing)
        with pytest.raises(TooLarge, match="row 1: 52 tokens, the model takes 8"):
            refusing.run({"text": long})

    def test_a_text_without_bounds_is_refused_before_it_is_looked_at(self) -> None:
        step = self.make({"max_characters": 100})
        self.bind(step)
        with pytest.raises(TooLarge, match="101 characters, at most 100"):
            step.run({"text": texts("x" * 101)})

    @pytest.mark.parametrize("data", [b"", b"{}", b"no json", b'{"version": "1.0", "model": {"type": "None"}}'])
    def test_a_file_that_is_no_tokenizer_is_refused(self, data: bytes) -> None:
        self.files = {"tokenizer.json": data}
        with pytest.raises(CorruptArtifact, match=r"'tokenizer.json' is no tokenizer"):
            self.make()

    def test_inputs_it_cannot_find_are_asked_for(self) -> None:
        self.wanted = token_inputs("words")
        with pytest.raises(InvalidArgument, match="say which one takes the tokens"):
            self.bind(self.make())
        self.bind(self.make({"outputs": {"input_ids": "words"}}))
        with pytest.raises(InvalidArgument, match="no input 'other'"):
            self.bind(self.make({"outputs": {"input_ids": "other"}}))
