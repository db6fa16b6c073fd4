"""The coverage-guided engine: atheris, with the grammars as its mutators. Not part of the suite: it has no wheels for
every Python that Salver has."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import corpus

MAX_INPUTS = 250
MAX_BYTES = 3000


def run(name: str, seconds: float | None, out: Path, seed: int) -> None:
    """Fuzz one target until the time is over or something is found; inputs that cover more go to ``out/NAME``."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["salver"]):
        targets = importlib.import_module("tests.fuzz.targets")
    target = targets.TARGETS[name]()
    target.renew()
    count = 0

    def take(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % 1000 == 0:
            target.renew()
        target.run(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        chance = random.random()
        if chance < 0.1 or not data:
            made = target.make(random)
        elif chance < 0.9:
            made = target.mutate(data, random)
        else:
            made = atheris.Mutate(data, max_size)
        return bytes(made[:max_size])

    found, start = out / name, Path(tempfile.mkdtemp(prefix="fuzz-"))
    found.mkdir(parents=True, exist_ok=True)
    random = Random(seed)
    for index, data in enumerate([*corpus.read(name), *(target.make(random) for _ in range(50))]):
        (start / f"{index:04}").write_bytes(data)
    limits = [f"-seed={seed}", "-max_len=16384", "-timeout=30", f"-artifact_prefix={out}/"]
    if seconds is not None:
        limits.append(f"-max_total_time={int(seconds)}")
    atheris.Setup([sys.argv[0], str(found), str(start), *limits], take, custom_mutator=mutate)
    atheris.Fuzz()


def keep(name: str, folder: Path) -> None:
    """Take a folder's inputs into the corpus of a target: the small ones, up to a bound."""
    inputs = {*corpus.read(name), *(path.read_bytes() for path in folder.iterdir() if path.is_file())}
    small = sorted((data for data in inputs if len(data) <= MAX_BYTES), key=lambda data: (len(data), data))
    step = max(1, -(-len(small) // MAX_INPUTS))
    corpus.write(name, small[::step])
    print(f"{name}: {len(small[::step])} of {len(inputs)} inputs kept")
