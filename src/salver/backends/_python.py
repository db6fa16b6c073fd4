"""A Python class as a model: for everything that no runtime and no framework backend takes."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.native import NativeSession, check_provider, check_trust, read_blob
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, SalverError
from salver.core.model import Blob, Model
from salver.core.specs import parse_inputs
from salver.core.tensors import Signature


class PythonBackend(Backend):
    """Runs a class in a ``.py`` file: the one in it that has ``predict``, ``inputs`` and ``outputs``.

        class Double:
            inputs = "x:float32[batch,3]"
            outputs = "y:float32[batch,3]"

            def load(self, folder):        # optional: once, with the folder of the model's files
                self.factor = 2

            def predict(self, x):          # arrays by name; gives an array, or a dictionary of them
                return self.factor * x

            def close(self):               # optional
                ...

    ``predict`` may be a coroutine, a generator or an asynchronous generator; parts that generators give are joined
    along the first dimension. Calls follow one another. Files beside the class travel with it.
    """

    name = "python"
    formats = ("python",)

    def versions(self) -> dict[str, str]:
        return {"python": ".".join(map(str, sys.version_info[:3]))}

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, model: Model, options: SessionOptions) -> Session:
        check_provider(options)
        source = read_blob(model.blobs[0])
        find_declaration(source, model.blobs[0].name)
        check_trust(model, "a Python class")
        return _open(model, source)

    def describe(self, blob: Blob) -> Signature:
        return find_declaration(read_blob(blob), blob.name).signature


class Declaration(msgspec.Struct, frozen=True):
    """What a file says of its class, read without running it."""

    name: str
    signature: Signature


def find_declaration(source: bytes, name: str) -> Declaration:
    """The class in a file that is a model.

    Raises:
        CorruptArtifact: it is no Python, or there is none, or several.
        InvalidArgument: inputs or outputs that cannot be read.
    """
    try:
        tree = ast.parse(source.decode("utf-8"), name)
    except (SyntaxError, ValueError) as error:
        raise CorruptArtifact(f"'{name}' is no Python file, or it is damaged: {error}") from None
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and _has_predict(node)]
    if len(found) != 1:
        names = ", ".join(node.name for node in found) or "none"
        raise CorruptArtifact(f"'{name}' must hold one class with the method 'predict'; it has {names}")
    texts = {t.id: v for t, v in _assigned(found[0])}
    missing = [which for which in ("inputs", "outputs") if which not in texts]
    if missing:
        raise InvalidArgument(
            f"class '{found[0].name}' in '{name}' does not say its {' and '.join(missing)}; write "
            f'{missing[0]} = "x:float32[batch,3]" in it'
        )
    signature = Signature(inputs=parse_inputs(texts["inputs"]), outputs=parse_inputs(texts["outputs"]))
    return Declaration(found[0].name, signature)


def _has_predict(node: ast.ClassDef) -> bool:
    return any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == "predict" for n in node.body)


def _assigned(node: ast.ClassDef) -> Iterator[tuple[ast.Name, str]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value: Any = statement.value
            parts = value.elts if isinstance(value, ast.Tuple | ast.List) else [value]
            texts = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
            if len(texts) == len(parts):
                yield statement.targets[0], ";".join(texts)


def _open(model: Model, source: bytes) -> Session:
    declared = find_declaration(source, model.blobs[0].name)
    folder, loop = Path(tempfile.mkdtemp(prefix="salver-python-")), _Loop()
    try:
        _lay_out(model, folder)
        made = _make(folder / model.blobs[0].name, declared.name, loop)
    except BaseException:
        loop.close()
        shutil.rmtree(folder)
        raise
    runner = _Runner(made, model.signature, loop)
    remove = weakref.finalize(runner, shutil.rmtree, folder, ignore_errors=True)

    def release() -> None:
        runner.close()
        remove()

    return NativeSession(model.signature, runner.answer, release, is_even=False)


def _lay_out(model: Model, folder: Path) -> None:
    for blob in model.blobs:
        target = folder / blob.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise CorruptArtifact(f"'{blob.name}' leads out of the model's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_blob(blob))


def _make(path: Path, name: str, loop: _Loop) -> Any:
    try:
        made = getattr(_import(path), name)()
        if hasattr(made, "load"):
            loop.finish(made.load(path.parent))
    except SalverError:
        raise
    except Exception as error:  # boundary: the user's own code
        raise FailedPrecondition(
            f"class '{name}' raised {type(error).__name__} while it was loaded: {error}"
        ) from error
    return made


def _import(path: Path) -> ModuleType:
    """Each file is a module of its own, which finds others beside it, while it is imported; another model may have
    modules of the same names."""
    spec = importlib.util.spec_from_file_location(f"salver_model_{abs(hash(str(path)))}", path)
    if spec is None or spec.loader is None:
        raise CorruptArtifact(f"'{path.name}' cannot be imported: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for name in set(sys.modules) - before - {spec.name}:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(path.parent)):
                del sys.modules[name]
    return module


class _Loop:
    """An event loop on a thread of its own, for what is asynchronous: whoever calls may have one that runs."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def finish(self, given: Any) -> Any:
        """What comes of a call, whether it was of a function, a coroutine or a generator."""
        if inspect.isawaitable(given):
            return self._run(_await(given))
        if isinstance(given, AsyncIterator):
            return self._run(_collect(given))
        return _join(list(given)) if isinstance(given, Iterator) else given

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="salver-python", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None


class _Runner:
    """Calls ``predict``, one call after the other."""

    def __init__(self, made: Any, signature: Signature, loop: _Loop) -> None:
        self._made, self._signature, self._loop = made, signature, loop
        self._lock = threading.Lock()

    def answer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with self._lock:
            return self._named(self._loop.finish(self._made.predict(**{n: a.copy() for n, a in inputs.items()})))

    def _named(self, found: Any) -> Mapping[str, Array]:
        names = self._signature.output_names
        if isinstance(found, Mapping):
            return {name: _array(value) for name, value in found.items()}
        if len(names) != 1:
            raise FailedPrecondition(f"'predict' gave a {type(found).__name__}; expected a dictionary of {names}")
        return {names[0]: _array(found)}

    def close(self) -> None:
        with self._lock:
            if hasattr(self._made, "close"):
                self._loop.finish(self._made.close())
            self._loop.close()


async def _await(given: Any) -> Any:
    return await given


async def _collect(given: AsyncIterator[Any]) -> Any:
    return _join([part async for part in given])


def _join(parts: list[Any]) -> Any:
    if not parts:
        raise FailedPrecondition("'predict' is a generator and gave nothing")
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([_array(part[name]) for part in parts]) for name in parts[0]}
    return np.concatenate([_array(part) for part in parts])


def _array(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array
