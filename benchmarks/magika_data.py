"""Build a labelled validation set for magika, a real network, from the files of this machine.

magika (PyPI, Apache-2.0) tells a file's type from its bytes: `bytes`, int32 [N, 2048], to a score
for each of 214 types. It is a fair test of an optimizer, because it is a network in daily use and
the usual int8 settings either make it slower or break it. Any machine holds thousands of files
whose names say what they are: those are the examples here.

    pip install magika
    python magika_data.py --out val.npz --labels labels.txt --model model.onnx

`val.npz` has `bytes`, int32 [N, 2048], the model's own input, and `label`, int64 [N], the index of
the type. `labels.txt` has the 214 names, one a line, in the model's order. `--model` also copies
the network out of the package.

How the set is made, so that its figures can be judged:

- The label comes from the file's extension alone (`LABEL_OF`), and only from extensions with one
  plausible meaning. What the model says is never looked at, so its mistakes stay in.
- The features are those of magika's own Python client: up to 4,096 bytes from each end, the
  white space around them stripped, the first and the last 1,024 bytes, padded with 256.
  Files that magika decides without the network (nearly empty ones) are left out.
- Links are not followed, and files that look the same to the model count once.
- At most `--per-label` files of a type are taken, at random by a hash of the path, and the rows are
  in the order of a hash of their content, so that any part of the set is a fair sample of it; the
  first `--examples` are kept. The same files give the same set; another machine, or this one after
  something was installed on it, has other files.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LABEL_OF = {
    ".awk": "awk",
    ".bat": "batch",
    ".bmp": "bmp",
    ".bz2": "bzip",
    ".c": "c",
    ".cc": "cpp",
    ".cmake": "cmake",
    ".cpp": "cpp",
    ".css": "css",
    ".csv": "csv",
    ".exe": "pebin",
    ".f90": "fortran",
    ".gif": "gif",
    ".go": "go",
    ".gz": "gzip",
    ".html": "html",
    ".ico": "ico",
    ".ipynb": "ipynb",
    ".jar": "jar",
    ".java": "java",
    ".jpeg": "jpeg",
    ".jpg": "jpeg",
    ".js": "javascript",
    ".json": "json",
    ".lua": "lua",
    ".m4": "m4",
    ".md": "markdown",
    ".mjs": "javascript",
    ".npy": "npy",
    ".npz": "npz",
    ".onnx": "onnx",
    ".otf": "otf",
    ".pdf": "pdf",
    ".pem": "pem",
    ".php": "php",
    ".pickle": "pickle",
    ".pkl": "pickle",
    ".pm": "perl",
    ".png": "png",
    ".proto": "proto",
    ".ps": "postscript",
    ".ps1": "powershell",
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".pyi": "python",
    ".rb": "ruby",
    ".rs": "rust",
    ".rst": "rst",
    ".sh": "shell",
    ".so": "elf",
    ".sql": "sql",
    ".svg": "svg",
    ".tar": "tar",
    ".tcl": "tcl",
    ".tiff": "tiff",
    ".toml": "toml",
    ".ts": "typescript",
    ".ttf": "ttf",
    ".wasm": "wasm",
    ".wav": "wav",
    ".webp": "webp",
    ".woff": "woff",
    ".woff2": "woff2",
    ".xml": "xml",
    ".xz": "xz",
    ".yaml": "yaml",
    ".yml": "yaml",
}


def find_model() -> Path:
    """Folder of the newest standard model in the installed `magika` package."""
    package = importlib.util.find_spec("magika")
    if package is None or package.origin is None:
        sys.exit("magika is not installed: pip install magika")
    models = Path(package.origin).parent / "models"

    def version(folder: Path) -> tuple[int, ...]:
        return tuple(map(int, folder.name.removeprefix("standard_v").split("_")))

    return max(models.glob("standard_v*"), key=version)


def extract(path: Path, config: dict[str, Any]) -> np.ndarray | None:
    """The model's input, int32 [beg_size + end_size]; None for a file that magika decides without it."""
    beg_size, end_size = config["beg_size"], config["end_size"]
    smallest = config["min_file_size_for_dl"]
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < smallest:
            return None
        block = min(config["block_size"], size)
        head = file.read(block).lstrip()[:beg_size]
        file.seek(size - block)
        tail = file.read(block).rstrip()[-end_size:]
    if len(head) < smallest:
        return None
    row = np.full(beg_size + end_size, config["padding_token"], np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[len(row) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


def candidates(roots: list[Path]) -> Iterator[tuple[str, Path]]:
    """(label, file) of every regular file under `roots` whose extension names a type."""
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                label = LABEL_OF.get(path.suffix)
                if label and stat.S_ISREG(path.lstat().st_mode):
                    yield label, path


def collect(roots: list[Path], config: dict[str, Any], per_label: int) -> list[tuple[bytes, str, np.ndarray]]:
    """(content hash, label, features) of the chosen files, sorted by the hash."""
    files = defaultdict(set)
    for label, path in candidates(roots):
        files[label].add(path)
    chosen: dict[bytes, tuple[str, np.ndarray]] = {}
    for label in sorted(files):
        taken = 0
        for path in sorted(files[label], key=lambda p: hashlib.sha256(os.fsencode(p)).digest()):
            if taken == per_label:
                break
            try:
                row = extract(path, config)
            except OSError as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            if row is None:
                continue
            digest = hashlib.sha256(row.astype("<i4").tobytes()).digest()
            if digest not in chosen:
                chosen[digest] = label, row
                taken += 1
    return [(digest, *chosen[digest]) for digest in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("roots", nargs="*", type=Path, help="folders to search (default: Python's own and /usr)")
    add("--out", type=Path, default=Path("val.npz"), help="the set to write")
    add("--labels", type=Path, help="also write the names of the types here")
    add("--model", type=Path, help="also copy the network here")
    add("--per-label", type=int, default=120, help="at most this many files of one type")
    add("--examples", type=int, default=1600, help="at most this many files in all")
    args = parser.parse_args()

    model = find_model()
    config = json.loads((model / "config.min.json").read_text())
    if config["mid_size"] or config["use_inputs_at_offsets"]:
        sys.exit(f"{model.name} wants features that this script does not make")
    names: list[str] = config["target_labels_space"]

    roots = args.roots or [Path(sys.base_prefix), Path("/usr")]
    rows = collect([root.resolve() for root in roots], config, args.per_label)[: args.examples]
    if not rows:
        sys.exit(f"no file of a known type under {', '.join(map(str, roots))}")
    np.savez_compressed(
        args.out,
        bytes=np.stack([row for _, _, row in rows]),
        label=np.array([names.index(label) for _, label, _ in rows], np.int64),
    )
    if args.labels:
        args.labels.write_text("".join(f"{name}\n" for name in names))
    if args.model:
        shutil.copyfile(model / "model.onnx", args.model)
    counts = Counter(label for _, label, _ in rows)
    print(f"{args.out}: {len(rows)} files of {len(counts)} types, for {model.name}")
    print(", ".join(f"{label} {count}" for label, count in counts.most_common()))


if __name__ == "__main__":
    main()
