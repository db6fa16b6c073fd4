"""What a pickle would import and call, found without running any of it.

The stream is read by Python's own unpickler in pure Python, in which every name stands for an inert stand-in: nothing
is imported, nothing is called. Arrays that joblib writes raw between two opcodes are skipped.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import msgspec

from salver.core.errors import CorruptArtifact, SalverError, Unimplemented

_COMPRESSED: Final[dict[bytes, Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00": lzma.open,
}
_ZLIB: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_LZ4: Final = b"\x04\x22\x4d\x18"
_ZIP: Final = b"PK"
_CHUNK_BYTES: Final = 1 << 20
_ARRAYS: Final = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_SHOWN: Final = 40

_DANGEROUS_MODULES: Final = frozenset(
    [
        "os",
        "posix",
        "nt",
        "posixpath",
        "ntpath",
        "subprocess",
        "sys",
        "shutil",
        "socket",
        "socketserver",
        "importlib",
        "runpy",
        "ctypes",
        "_ctypes",
        "pty",
        "platform",
        "webbrowser",
        "code",
        "codeop",
        "pdb",
        "bdb",
        "timeit",
        "cProfile",
        "profile",
        "trace",
        "doctest",
        "pydoc",
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "multiprocessing",
        "threading",
        "_thread",
        "asyncio",
        "signal",
        "_io",
        "urllib",
        "http",
        "ftplib",
        "smtplib",
        "telnetlib",
        "requests",
        "aiohttp",
        "httpx",
        "paramiko",
        "pathlib",
        "tempfile",
        "glob",
        "io",
        "_io",
        "fileinput",
        "zipimport",
        "pkgutil",
        "pip",
        "setuptools",
        "venv",
        "ensurepip",
        "idlelib",
        "nturl2path",
        "linecache",
        "gc",
        "inspect",
        "resource",
        "mmap",
        "fcntl",
        "termios",
        "builtins",
        "__builtin__",
        "types",
        "operator",
        "functools",
        "torch.hub",
        "torch.jit",
        "torch.load",
        "numpy.testing",
        "numpy.f2py",
        "numpy.distutils",
        "numpy.load",
        "numpy.lib",
        "joblib.load",
        "joblib.numpy_pickle.load",
        "joblib.parallel",
        "joblib.externals",
        "pandas.read_pickle",
        "pandas.io.pickle",
        "pandas.eval",
        "scipy.io",
    ]
)
_PLAIN: Final = [
    "list",
    "dict",
    "set",
    "frozenset",
    "tuple",
    "int",
    "float",
    "bool",
    "str",
    "bytes",
    "bytearray",
    "complex",
    "slice",
    "range",
    "object",
    "type",
]
_HARMLESS: Final = frozenset(
    {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN}
    | {f"operator.{name}" for name in ["itemgetter", "add", "mul", "sub", "truediv", "neg"]}
    | {f"pathlib.{name}" for name in ["Path", "PosixPath", "PurePath", "PurePosixPath"]}
    | {f"types.{name}" for name in ["SimpleNamespace", "MappingProxyType"]}
    | {"functools.partial", "_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor"}
)
_BY_VALUE: Final = ("cloudpickle", "dill._dill", "types.FunctionType", "types.CodeType", "types.CellType")
_LIBRARIES: Final = frozenset(
    [
        "numpy",
        "scipy",
        "pandas",
        "sklearn",
        "joblib",
        "xgboost",
        "lightgbm",
        "catboost",
        "collections",
        "datetime",
        "decimal",
        "fractions",
        "re",
        "copyreg",
    ]
)


class Inspection(msgspec.Struct, frozen=True):
    """What loading a pickle would do.

    Args:
        imports: every name it would import, sorted.
        calls: those of them that it would call.
        dangerous: those that run commands, open files or connections, or load further code.
        by_value: those that make functions of code that the file itself holds.
    """

    imports: tuple[str, ...]
    calls: frozenset[str]
    dangerous: tuple[str, ...]
    by_value: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self._line(name) for name in sorted(self.imports, key=self._rank)]
        more = len(lines) - _SHOWN
        return "\n".join(
            ["loading it would import:", *lines[:_SHOWN], *([f"  ... and {more} more"] if more > 0 else [])]
        )

    def _rank(self, name: str) -> tuple[int, str]:
        return (0 if name in self.dangerous else 1 if name in self.by_value else 2 if _is_strange(name) else 3), name

    def _line(self, name: str) -> str:
        marks = ["and call it"] if name in self.calls else []
        if name in self.dangerous:
            marks.append("DANGEROUS: it can run commands or code, or reach files or the network")
        elif name in self.by_value:
            marks.append("runs code that is stored in this file")
        elif _is_strange(name):
            marks.append("of no library that models are made with")
        return f"  {name}{': ' * bool(marks)}{'; '.join(marks)}"


def inspect_pickle(path: Path) -> Inspection:
    """Find what a pickle, also of joblib, cloudpickle or dill, would import and call; nothing of it is run.

    Raises:
        CorruptArtifact: it is no pickle, or damaged.
        Unimplemented: it is compressed in a way that cannot be read here.
    """
    found = _Found()
    try:
        with _open(path) as file:
            _Reader(file, found).load()
    except SalverError:
        raise
    except (pickle.UnpicklingError, struct.error, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise CorruptArtifact(f"'{path}' is not a pickle, or it is damaged: {error or 'it ends too early'}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise CorruptArtifact(f"'{path}' is not a pickle, or it is damaged: {type(error).__name__}: {error}") from None
    imports = tuple(sorted(found.imports))
    by_value = tuple(name for name in imports if name.startswith(_BY_VALUE))
    dangerous = tuple(name for name in imports if _is_dangerous(name) and name not in by_value)
    return Inspection(imports, frozenset(found.calls), dangerous, by_value)


def _is_dangerous(name: str) -> bool:
    parts = name.split(".")
    return name not in _HARMLESS and any(".".join(parts[:n]) in _DANGEROUS_MODULES for n in range(1, len(parts) + 1))


def _is_strange(name: str) -> bool:
    return name.partition(".")[0] not in _LIBRARIES and name not in _HARMLESS


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(_ZIP):
        raise CorruptArtifact(f"'{path}' is a zip archive, not a pickle; if torch.save made it, name it .pt")
    if head.startswith(_LZ4):
        raise Unimplemented(
            f"'{path}' is compressed with lz4, which cannot be inspected; save it with another compression"
        )
    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            opened: IO[bytes] = io.BufferedReader(opener(path, "rb"))
            return opened
    if head.startswith(_ZLIB):
        return io.BufferedReader(_Inflated(path))
    return path.open("rb")


class _Inflated(io.RawIOBase):
    """A zlib stream as a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            given = self._inflate.unconsumed_tail or self._file.read(_CHUNK_BYTES)
            data = self._inflate.decompress(given, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not given:
                raise EOFError("it ends too early")
        return 0

    def close(self) -> None:
        self._file.close()
        super().close()


class _Found:
    """What was met."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.calls: set[str] = set()


class _Named:
    """Stands for whatever has a name."""

    def __init__(self, name: str, found: _Found) -> None:
        self.name, self.found = name, found

    def __call__(self, *args: Any, **kwargs: Any) -> _Made:
        self.found.calls.add(self.name)
        return _Made(self, args)


class _Made:
    """Stands for what a call gave. Takes whatever is put into it."""

    def __init__(self, maker: Any, args: tuple[Any, ...] = ()) -> None:
        self.maker, self.args = maker, args
        self.state: Any = None

    def append(self, item: Any) -> None:
        """As a list, a set and a dictionary do."""

    extend = add = update = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """As a dictionary does."""


class _Reader(pickle._Unpickler):  # the one in C cannot be told what opcodes do
    """Reads a stream and makes stand-ins."""

    stack: list[Any]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], found: _Found) -> None:
        super().__init__(file, encoding="bytes")
        self._file_itself, self._found = file, found

    def find_class(self, module: Any, name: Any) -> _Named:
        full = f"{_text(module)}.{_text(name)}"
        self._found.imports.add(full)
        return _Named(full, self._found)

    def persistent_load(self, pid: Any) -> _Made:
        return _Made(None)

    def get_extension(self, code: int) -> None:
        self.append(self.find_class("copyreg", f"extension {code}"))

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(_call(klass, args))

    def load_newobj(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.append(_call(kind, args))

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(_call(function, args))

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, _Made):
            return
        made.state = state
        if isinstance(made.maker, _Named) and made.maker.name == ".".join(_ARRAYS):
            self._skip_array(state)

    dispatch[pickle.BUILD[0]] = load_build

    def _skip_array(self, state: Any) -> None:
        """Skip an array that joblib has written after its description (joblib.numpy_pickle.NumpyArrayWrapper)."""
        kind = state["dtype"]
        code = kind.args[0] if isinstance(kind, _Made) and kind.args else None
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if code is None or code.startswith("O"):
            _Reader(self._file_itself, self._found).load()
            return
        if not code[1:].isdigit():
            raise pickle.UnpicklingError(f"an array of the unknown type {code}")
        size = int(code[1:]) * (4 if code[0] == "U" else 1) * math.prod(state["shape"])
        if state.get("numpy_array_alignment_bytes") is not None:
            self._skip(self._file_itself.read(1)[0])
        self._skip(size)

    def _skip(self, size: int) -> None:
        while size:
            given = len(self._file_itself.read(min(size, _CHUNK_BYTES)))
            if not given:
                raise EOFError("an array is cut off")
            size -= given


def _call(kind: Any, args: Any) -> _Made:
    values = args if isinstance(args, tuple) else ()
    if isinstance(kind, _Named):
        return kind(*values)
    return _Made(kind, values)


def _text(name: Any) -> str:
    return (
        name.decode("utf-8", "replace") if isinstance(name, bytes) else name if isinstance(name, str) else "(computed)"
    )
