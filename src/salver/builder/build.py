"""The main job: a trained model in, candidates tried and certified, the chosen one sealed with its proof."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnx

from salver import __version__
from salver.backends import BACKENDS
from salver.builder.events import BuildEvent, OnEvent
from salver.builder.importers import load_model
from salver.builder.importers.base import Imported
from salver.builder.search.cache import TrialCache
from salver.builder.search.choose import Objective
from salver.builder.search.search import Search, SearchResult, SearchSettings
from salver.builder.search.splits import split
from salver.builder.search.spool import SpooledDataset, spool
from salver.bundle import Bundle, Contents, make_golden, seal
from salver.bundle.archive import translate
from salver.core.cache import default_cache_dir
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound
from salver.core.model import Model, Step
from salver.datasets import bind, open_dataset
from salver.evaluation.host import describe_host
from salver.evaluation.metrics import make_metric
from salver.evaluation.noninferiority import check_margin, default_margin, parse_margin
from salver.evaluation.types import BuildRecord

_GOLDEN_ROWS: Final = 16
_LEAST_EXAMPLES: Final = 3
_DEFAULT_BUDGET_S: Final = 300.0


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Say what the operating system refused: a full disk, a folder that may not be written."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever was listening to progress has gone; that is for the caller to judge
    except OSError as error:
        raise translate(error, Path(error.filename or tempfile.gettempdir())) from error


@_foreign_errors()
def build(
    source: Any,
    data: Any,
    *,
    metric: str | None = None,
    max_drop: str | None = None,
    objective: Objective = "latency",
    threads: int = 1,
    batch: int = 1,
    calibration: Any = None,
    budget_s: float = _DEFAULT_BUDGET_S,
    labels: Sequence[str] | Path | str | None = None,
    label: str | None = None,
    golden: Literal["real", "synthetic"] = "real",
    output: Path | str | None = None,
    name: str | None = None,
    card: str = "",
    licence: str = "",
    trust_pickle: bool = False,
    cache: Path | str | None = None,
    seed: int = 0,
    sign_key: Path | str | None = None,
    on_event: OnEvent | None = None,
) -> Bundle:
    """Import a model, look for a better one, certify it on the user's data and seal it.

    Args:
        source: a model file, or an estimator in memory.
        data: validation examples: a file, a folder, ``module:function``, a dict of arrays, or a `Dataset`.
        metric: a metric's name or ``module:function``; without it ``accuracy`` where there are labels, else
            ``agreement``.
        max_drop: how much worse is still not worse: ``0.5pp`` (percentage points) or ``1%`` (relative); without it
            ``0.5pp`` where the metric is a share (accuracy, top-5, auc, agreement), else ``1%``.
        objective: what has to get better.
        threads, batch: at which latency is measured.
        calibration: examples for calibration; without it a part of ``data`` that is used for nothing else.
        budget_s: wall time for search and certification, in seconds.
        labels: class names, or a text file with one name per line.
        label: name of the label column in ``data``.
        golden: whether the requests stored in the bundle are taken from ``data`` or made up.
        output: where the bundle is written; without it ``<name>.salver`` in the current folder.
        name: the model's name; without it the source's file name.
        card, licence: texts that travel with the model.
        trust_pickle: run code from a pickled source.
        cache: folder that keeps trials; a second build of the same inputs resumes from it.
        seed: of the random split.
        sign_key: Ed25519 private key (PEM) to sign the bundle with.
        on_event: told of progress.

    Returns:
        The sealed bundle, open.

    Raises:
        SalverError: with what was given, what was expected and what to do.
        KeyboardInterrupt: interrupted before there was anything to seal.
    """
    began = time.monotonic()
    tell = on_event or _ignore
    _check_numbers(threads, batch, budget_s)
    if max_drop is not None:
        parse_margin(max_drop)  # refuses what is no margin before anything long begins
    cache_dir = Path(cache) if cache is not None else default_cache_dir()
    examples = open_dataset(data, label=label)
    tell(BuildEvent(stage="import", message="importing and checking parity", left_s=budget_s))
    imported = _import(source, examples, cache_dir / "imports", trust_pickle, _read_labels(labels))
    if len(examples) < _LEAST_EXAMPLES:
        raise InvalidArgument(
            f"'{examples.source}' has {len(examples)} example{'s' if len(examples) > 1 else ''}; expected at least "
            f"{_LEAST_EXAMPLES}, one each to calibrate, to steer and to certify (hundreds, to certify anything)"
        )
    wanted = metric or ("accuracy" if examples.label_spec is not None else "agreement")
    judge = make_metric(wanted, imported.model.signature)  # refuses a wrong name before anything long begins
    if judge.needs_labels and examples.label_spec is None:
        judge.require_labels(None)
    allowed = max_drop or default_margin(judge)
    check_margin(judge, allowed)
    chosen_name = name or _name_of(source)
    target = Path(output) if output is not None else Path(f"{chosen_name}.salver")
    if not target.absolute().parent.is_dir():
        raise NotFound(f"no such folder for the bundle: '{target.parent}'; make it, or name another with -o")
    with tempfile.TemporaryDirectory(prefix="salver-build-") as scratch:
        parts = _deal(examples, calibration, imported.model, seed, Path(scratch))
        settings = SearchSettings(
            metric=wanted,
            margin=parse_margin(allowed),
            objective=objective,
            threads=threads,
            batch=batch,
            budget_s=budget_s,
        )
        host = describe_host()
        tools = _tools()
        result = Search(
            imported.model,
            splits={role: part.folder for role, part in parts.items()},
            rows={role: len(part) for role, part in parts.items()},
            digests={**{role: part.digest for role, part in parts.items()}, "seed": str(seed), "rows": _rows(parts)},
            settings=settings,
            cache=TrialCache(cache_dir),
            host=host,
            tools=tools,
            on_event=tell,
        ).run()
        tell(BuildEvent(stage="seal", message=f"sealing {result.chosen}", elapsed_s=time.monotonic() - began))
        record = BuildRecord(
            settings={**msgspec.to_builtins(settings), "max_drop": allowed, "golden": golden, "seed": seed},
            splits={role: len(part) for role, part in parts.items()},
            candidates=result.candidates,
            chosen=result.chosen,
            why=result.why,
            hints=_hints(result, threads),
            host=host,
            tools=tools,
            seconds=round(time.monotonic() - began, 1),
        )
        contents = Contents(
            name=chosen_name,
            model=msgspec.structs.replace(result.model, lineage=(*result.model.lineage, *_data_steps(parts))),
            record=record,
            parity=msgspec.to_builtins(imported.parity),
            golden=make_golden(
                result.model, _golden_rows(parts["steer"]) if golden == "real" else None, count=_GOLDEN_ROWS, seed=seed
            ),
            card=card or _card(chosen_name, imported, record),
            licence=licence,
        )
        bundle = seal(target, contents)
    return bundle.sign(Path(sign_key)) if sign_key is not None else bundle


def load(
    source: Any,
    *,
    data: Any = None,
    workdir: Path | str | None = None,
    trust_pickle: bool = False,
    labels: Sequence[str] | Path | str | None = None,
) -> Model:
    """Import a model and prove that the import changed nothing.

    Args:
        source: a model file, or an estimator in memory.
        data: real inputs for the parity check; without them inputs are made up.
        workdir: where the converted model is written; without it the cache folder.
        trust_pickle, labels: as in `build`.

    Raises:
        ParityFailed: the converted model gives other answers, naming the worst output and input.
        SalverError: otherwise, with what was given, what was expected and what to do.
    """
    folder = Path(workdir) if workdir is not None else default_cache_dir() / "imports"
    examples = open_dataset(data) if data is not None else None
    return _import(source, examples, folder, trust_pickle, _read_labels(labels)).model


def _import(
    source: Any, examples: Dataset | None, folder: Path, trust_pickle: bool, labels: tuple[str, ...]
) -> Imported:
    """Import below ``folder``, each model in a folder named by its digest: the same import lies in the same place,
    so that trials of it are found again, and different models never overwrite each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as scratch:
        imported = load_model(source, data=examples, workdir=Path(scratch), trust_pickle=trust_pickle, labels=labels)
        home = folder / imported.model.digest.removeprefix("sha256:")[:32]
        blobs = []
        for blob in imported.model.blobs:
            target = home / blob.name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            shutil.copyfile(blob.path, partial)
            partial.replace(target)
            blobs.append(msgspec.structs.replace(blob, path=target))
    model = msgspec.structs.replace(imported.model, blobs=tuple(blobs))
    return msgspec.structs.replace(imported, model=model)


def _ignore(event: BuildEvent) -> None:
    del event


def _check_numbers(threads: int, batch: int, budget_s: float) -> None:
    for what, value in (("threads", threads), ("batch", batch), ("budget", budget_s)):
        if value <= 0:
            raise InvalidArgument(f"{what}: got {value}, expected a number above 0")


def _read_labels(labels: Sequence[str] | Path | str | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    if not isinstance(labels, str | Path):
        return tuple(labels)
    path = Path(labels)
    if not path.is_file():
        raise NotFound(f"labels: no such file: '{path}'; give a text file with one class name per line")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"labels: '{path}' is not UTF-8 text: {error}") from None


def _name_of(source: Any) -> str:
    stem = Path(source).stem if isinstance(source, str | Path) else type(source).__name__.lower()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"


def _deal(examples: Dataset, calibration: Any, model: Model, seed: int, folder: Path) -> dict[str, SpooledDataset]:
    bound = bind(examples, model.signature)
    own = bind(open_dataset(calibration), model.signature) if calibration is not None else None
    dealt = split(bound, own, seed)
    return {
        "calibrate": spool(dealt.calibrate, folder / "calibrate"),
        "steer": spool(dealt.steer, folder / "steer"),
        "certify": spool(dealt.certify, folder / "certify"),
    }


def _data_steps(parts: dict[str, SpooledDataset]) -> list[Step]:
    """Which examples took part, and as what; the file's name without its folder, which is nobody's business."""
    return [
        Step(
            action="data",
            name=f"{role}: {Path(part.source).name}",
            output_digest=part.digest,
            config={"rows": len(part)},
        )
        for role, part in parts.items()
    ]


def _rows(parts: dict[str, SpooledDataset]) -> str:
    return ",".join(f"{role}={len(part)}" for role, part in sorted(parts.items()))


def _golden_rows(part: SpooledDataset) -> dict[str, Any]:
    return next(iter(part.batches(_GOLDEN_ROWS))).inputs


def _tools() -> dict[str, str]:
    backends = [BACKENDS.get(name)().versions() for name in BACKENDS.names()]
    found = {"salver": __version__, "onnx": onnx.__version__, "numpy": np.__version__}
    return {**found, **{library: version for versions in backends for library, version in versions.items()}}


def _hints(result: SearchResult, threads: int) -> dict[str, Any]:
    """What a server should do where nothing better is known."""
    sealed = next(c for c in result.candidates if c.name == result.chosen)
    measured = sealed.evaluation
    invariance = measured.invariance if measured else None
    batchable = result.model.signature.batch_dim is not None
    merge = batchable and invariance is not None and invariance.invariant
    batch = measured.latency[-1].batch if measured and measured.latency and merge else 1
    why = "" if merge else invariance.reason if invariance and invariance.reason else "the model has no batch dimension"
    return {"threads": threads, "batch": batch, "merge": merge, "why": why}


def _card(name: str, imported: Imported, record: BuildRecord) -> str:
    """A model card in Markdown, from what is known."""
    sealed = record.sealed
    quality = sealed.evaluation.quality if sealed.evaluation else None
    lines = [f"# {name}", "", *(f"- {line}" for line in record.why), ""]
    if quality is not None:
        lines += [
            f"{quality.metric}: {quality.value:.4f} (original {quality.baseline:.4f}) on {quality.examples} examples, "
            f"{quality.role}. Drop at most {quality.drop_upper:.4f} (one-sided 95 %).",
            "",
        ]
    lines += ["## Inputs and outputs", ""]
    signature = imported.model.signature
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [f"- {kind} `{s.name}`: {s.datatype} {list(s.shape)}" for s in specs]
    notes = [f"- {note}" for note in imported.model.notes]
    return "\n".join([*lines, *(["", "## Notes", "", *notes] if notes else []), ""])
