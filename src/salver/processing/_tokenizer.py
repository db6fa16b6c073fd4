"""Texts to tokens with Hugging Face `tokenizers` (https://github.com/huggingface/tokenizers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import CorruptArtifact, InvalidArgument, MissingExtra, TooLarge
from salver.core.tensors import TensorSpec
from salver.processing.base import ProcessingStep, Read, find, row_name

try:
    from tokenizers import Encoding, Tokenizer
except ImportError:
    raise MissingExtra("the processing step 'tokenizer'", "tokenizers", "text") from None

_ALIASES: Final = {
    "input_ids": ("input_ids", "ids", "tokens"),
    "attention_mask": ("attention_mask", "mask", "input_mask"),
    "token_type_ids": ("token_type_ids", "segment_ids"),
}
_PADS: Final = ("[PAD]", "<pad>", "<PAD>", "<|endoftext|>", "</s>")
_DATATYPES: Final = ("INT32", "INT64", "FP32", "UINT8", "INT8")
_DEFAULT_LENGTH: Final = 512


class TokenizerConfig(Config, frozen=True, kw_only=True):
    """How texts become tokens.

    Args:
        file: the tokenizer as JSON (``tokenizer.json``).
        input: what clients send.
        pair: a second text of each row, for models of pairs; empty for none.
        outputs: ``input_ids``, ``attention_mask`` and ``token_type_ids`` -> the model's input; those that the model has
            by these names, or as ids, mask and segment_ids, where nothing is said.
        max_length: tokens of a row at most; 0 for what the tokenizer says, or the model, or 512.
        too_long: what happens to longer rows.
        max_characters: a longer text is refused before it is looked at.
        special_tokens: whether tokens such as ``[CLS]`` are added.
        pad_token: the token that short rows are filled up with; empty for the one the tokenizer names.
    """

    file: str
    input: str = "text"
    pair: str = ""
    outputs: dict[str, str] = {}
    max_length: int = 0
    too_long: Literal["truncate", "refuse"] = "truncate"
    max_characters: int = 100_000
    special_tokens: bool = True
    pad_token: str = ""


class TokenizerStep(ProcessingStep):
    """Tokens of texts, filled up to the longest row of the batch, or to the length that the model has."""

    name = "tokenizer"
    Config: ClassVar[type[Any]] = TokenizerConfig
    files = ("file",)
    is_even = False

    def __init__(self, config: TokenizerConfig, read: Read) -> None:
        self._config = config
        self._tokenizer = _load(read(config.file), config.file)
        said = self._tokenizer.truncation or {}
        self._most = config.max_length or int(said.get("max_length", 0))
        padding = self._tokenizer.padding or {}
        self._pad_left = padding.get("direction") == "left"
        self._pads = {
            "input_ids": _pad_id(self._tokenizer, config.pad_token, padding),
            "attention_mask": 0,
            "token_type_ids": int(padding.get("pad_type_id", 0)),
        }
        self._targets: dict[str, TensorSpec] = {}
        self._length = 0

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input, self._config.pair) if self._config.pair else (self._config.input,)

    def raw(self, name: str, batch: int | str) -> TensorSpec:
        return TensorSpec(name=name, datatype="BYTES", shape=(batch,))

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        for name in self.consumes:
            find(given, name, ("BYTES",), (1,))
        names = self._config.outputs or _guess(wanted)
        for kind, name in names.items():
            if kind not in _ALIASES:
                raise InvalidArgument(f"outputs: '{kind}' is unknown; there are {', '.join(_ALIASES)}")
            if name not in wanted:
                raise InvalidArgument(f"outputs: the model has no input '{name}'; it has {', '.join(wanted)}")
            self._targets[kind] = find(wanted, name, _DATATYPES, (2,))
        lengths = {spec.shape[1] for spec in self._targets.values() if isinstance(spec.shape[1], int)}
        if len(lengths) > 1:
            raise InvalidArgument(f"the model's inputs have different lengths: {sorted(lengths)}")
        self._length = int(lengths.pop()) if lengths else 0
        most = self._most or self._length or _DEFAULT_LENGTH
        self._most = min(most, self._length) if self._length else most
        self._tokenizer.no_padding()
        if self._config.too_long == "truncate":
            self._tokenizer.enable_truncation(self._most)
        else:
            self._tokenizer.no_truncation()
        return tuple(self._targets.values())

    def pad_to(self, sizes: Mapping[str, int]) -> None:
        for spec in self._targets.values():
            dim = spec.shape[1]
            if isinstance(dim, str) and dim in sizes:
                self._length = sizes[dim]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        encoded = self._encode(arrays)
        length = self._length or max((len(one) for one in encoded), default=0) or 1
        columns = {
            "input_ids": [one.ids for one in encoded],
            "attention_mask": [one.attention_mask for one in encoded],
            "token_type_ids": [one.type_ids for one in encoded],
        }
        return {
            spec.name: self._fill(columns[kind], length, self._pads[kind], spec.dtype)
            for kind, spec in self._targets.items()
        }

    def _encode(self, arrays: Mapping[str, Array]) -> list[Encoding]:
        texts = arrays[self._config.input].tolist()
        pairs = arrays[self._config.pair].tolist() if self._config.pair else [None] * len(texts)
        encoded = []
        for row, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
            self._check(text, pair, row, len(texts))
            one = self._tokenizer.encode(text, pair, add_special_tokens=self._config.special_tokens)
            if len(one) > self._most:
                raise TooLarge(
                    f"{row_name(self._config.input, row, len(texts))}: {len(one)} tokens, the model takes {self._most}"
                )
            encoded.append(one)
        return encoded

    def _check(self, text: str, pair: str | None, row: int, rows: int) -> None:
        size = max(len(text), len(pair or ""))
        if size > self._config.max_characters:
            raise TooLarge(
                f"{row_name(self._config.input, row, rows)}: a text of {size} characters, at most "
                f"{self._config.max_characters} are taken (max_characters of the tokenizer step)"
            )

    def _fill(self, rows: Sequence[Sequence[int]], length: int, pad: int, dtype: np.dtype[Any]) -> Array:
        filled = np.full((len(rows), length), pad, dtype)
        for row, values in zip(filled, rows, strict=True):
            if self._pad_left:
                row[length - len(values) :] = values
            else:
                row[: len(values)] = values
        return filled


def _load(data: bytes, name: str) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise CorruptArtifact(
            f"'{name}' is no tokenizer in the JSON of Hugging Face 'tokenizers': {str(error)[:200]}"
        ) from error


def _pad_id(tokenizer: Tokenizer, token: str, padding: Mapping[str, Any]) -> int:
    if token:
        found = tokenizer.token_to_id(token)
        if found is None:
            raise InvalidArgument(f"pad_token: the tokenizer has no token '{token}'")
        return int(found)
    if "pad_id" in padding:
        return int(padding["pad_id"])
    ids = (tokenizer.token_to_id(pad) for pad in _PADS)
    return next((int(found) for found in ids if found is not None), 0)


def _guess(wanted: Mapping[str, TensorSpec]) -> dict[str, str]:
    names = {
        kind: next(alias for alias in aliases if alias in wanted)
        for kind, aliases in _ALIASES.items()
        if any(alias in wanted for alias in aliases)
    }
    if "input_ids" not in names:
        raise InvalidArgument(
            f"none of the model's inputs ({', '.join(wanted)}) is called input_ids; say which one takes the tokens: "
            'outputs = {input_ids = "...", attention_mask = "..."}'
        )
    return names
