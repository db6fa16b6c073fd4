"""Read labelled examples: one table of readers, one door."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound, UnknownName
from salver.core.registry import Family
from salver.datasets.base import LABEL_NAMES, Reader, ReaderConfig
from salver.datasets.binding import BoundDataset, bind, takes_single_examples

BUILTIN: Final = {
    "npz": "salver.datasets._npz:NpzDataset",
    "npy": "salver.datasets._npy:NpyDataset",
    "csv": "salver.datasets._csv:CsvDataset",
    "jsonl": "salver.datasets._jsonl:JsonlDataset",
    "parquet": "salver.datasets._parquet:ParquetDataset",
    "images": "salver.datasets._images:ImagesDataset",
    "function": "salver.datasets._function:FunctionDataset",
    "arrays": "salver.datasets._arrays:ArraysDataset",
}
"""A reader of files is named as the suffix it reads, so that a plug-in named ``arrow`` reads ``.arrow`` files."""

DATASETS: Final[Family[type[Any]]] = Family("datasets", BUILTIN)

_NOT_SUFFIXES: Final = ("images", "function", "arrays")

__all__ = [
    "BUILTIN",
    "DATASETS",
    "LABEL_NAMES",
    "BoundDataset",
    "Reader",
    "ReaderConfig",
    "bind",
    "open_dataset",
    "takes_single_examples",
]


def open_dataset(source: Any, *, label: str | None = None, **settings: Any) -> Dataset:
    """Open labelled examples.

    Args:
        source: a file (``.npz .npy .csv .jsonl .parquet``; ``.csv`` and ``.jsonl`` also with ``.gz``), a folder of
        images,
            ``module:function``, a dictionary of arrays, a tuple ``(inputs, labels)``, or a dataset, which is
            returned as is.
        label: the label column; None takes the one named as in `LABEL_NAMES`.
        settings: fields of the reader's config.

    Raises:
        NotFound: no such file or function.
        InvalidArgument: no reader for it, or its content is not what it claims to be.
        MissingExtra: the reader needs an optional package.
    """
    if isinstance(source, Dataset):
        if label is not None and (source.label_spec is None or source.label_spec.name != label):
            raise InvalidArgument(
                f"label '{label}' was given with a dataset that is open already; open it with that label"
            )
        return source
    name, found = _choose(source)
    member = DATASETS.get(name)
    dataset: Dataset = member(found, member.Config.from_data({"label": label, **settings}))
    return dataset


def _choose(source: Any) -> tuple[str, Any]:
    if not isinstance(source, str | Path):
        return "arrays", source
    path = Path(source)
    if path.is_dir():
        return "images", path
    if not path.exists():
        module, colon, function = str(source).partition(":")
        if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
            return "function", str(source)
        raise NotFound(f"no such file or folder: '{source}'")
    suffixes = [s.removeprefix(".").lower() for s in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == "gz"
    suffix = (suffixes[-2] if len(suffixes) > 1 else "") if compressed else (suffixes[-1] if suffixes else "")
    readable = [n for n in DATASETS.names() if n not in _NOT_SUFFIXES]
    if suffix not in readable:
        raise UnknownName(f"kind of data file ('{path.name}')", suffix, readable)
    if compressed and suffix not in ("csv", "jsonl"):
        raise InvalidArgument(f"'{path}': gzip is read for .csv and .jsonl only; decompress it")
    return suffix, path
