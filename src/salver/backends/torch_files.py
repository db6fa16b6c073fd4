"""What PyTorch's files are, and what they may hold before any of it is loaded. Needs no PyTorch.

A program file is not plain data: the graph of a ``.pt2`` names functions and carries expressions that PyTorch evaluates
as Python, its tensors may be pickles, and TorchScript has operators that read and write files. What a model does not
need is refused by name.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, Final

import msgspec

from salver.core.errors import CorruptArtifact, PermissionDenied, Unimplemented

PT2: Final = "pt2"
TORCHSCRIPT: Final = "torchscript"
WEIGHTS: Final = "weights"

_MOST_EXPANSION: Final = 100
_SMALL_BYTES: Final = 64 << 20
_PICKLE_STARTS: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_FUNCTION: Final = re.compile(
    r"torch\.ops\.(?!load_library\b|import_module\b|loaded_libraries\b)[A-Za-z]\w*\.\w+(\.(?!__)\w+)?"
    r"|torch\._?sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|index|"
    r"lshift|rshift)"
)
_FILE_OPERATOR: Final = re.compile(r"\b(?:torch|ops\.aten)\.(from_file|save|load)\(")
_NODES: Final = (
    ast.Expression,
    ast.Compare,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Constant,
    ast.Subscript,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.keyword,
    ast.Attribute,
    ast.Tuple,
    ast.IfExp,
)
_METHODS: Final = ("size", "stride", "storage_offset", "numel", "dim", "ceil", "floor", "trunc", "sqrt", "isnan", "inf")
_CALLS: Final = re.compile(
    r"(Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|"
    r"StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|BooleanTrue|BooleanFalse|Piecewise|ceiling|floor|"
    r"\w*Div|\w*Mod|ModularIndexing|Where|CeilToInt|FloorToInt|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|"
    r"[LR]Shift|\w*Pow\w*|ToFloat|Identity|IsNonOverlappingAndDenseIndicator|OpaqueUnaryFn_\w+|math|"
    r"max|min|abs|int|float|bool|round|len|cast_symbool_to_symint_guardless)"
)


class Archive(msgspec.Struct, frozen=True):
    """The members of a PyTorch archive, by their names without the first folder.

    Args:
        kind: `PT2`, `TORCHSCRIPT` or `WEIGHTS`.
        members: name without the first folder -> name in the archive.
    """

    kind: str
    members: dict[str, str]


def read_archive(file: IO[bytes], name: str) -> Archive:
    """Say what a file is.

    Raises:
        CorruptArtifact: it is no archive of PyTorch, it is truncated, or it unpacks to far more than it is.
        Unimplemented: an archive of a PyTorch that is too old.
    """
    file.seek(0)
    start = file.read(2)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if start in _PICKLE_STARTS:
            return Archive(WEIGHTS, {})  # as `torch.save` wrote before PyTorch 1.6
        raise CorruptArtifact(f"'{name}' is not a PyTorch file, or it is truncated: {error}") from None
    finally:
        size = file.seek(0, 2)
        file.seek(0)
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(_MOST_EXPANSION * size, _SMALL_BYTES):
        raise CorruptArtifact(f"'{name}' of {size} bytes unpacks to {unpacked} bytes; no PyTorch file does")
    members = {str(PurePosixPath(*PurePosixPath(info.filename).parts[1:])): info.filename for info in infos}
    if "archive_format" in members and "models/model.json" in members:
        return Archive(PT2, members)
    if any(info.filename == "serialized_exported_program.json" for info in infos):
        raise Unimplemented(
            f"'{name}' was saved by PyTorch 2.7 or older; load it there and save it with PyTorch 2.8 or newer"
        )
    if "constants.pkl" in members and any(member.startswith("code/") for member in members):
        return Archive(TORCHSCRIPT, members)
    if "data.pkl" in members:
        return Archive(WEIGHTS, members)
    raise CorruptArtifact(f"'{name}' is a zip archive, but none of PyTorch: no program, no code and no tensors in it")


def check_program(file: IO[bytes], archive: Archive, name: str) -> list[str]:
    """Refuse what a program file could do beside computing.

    Returns:
        Names of the members that are pickles; they must pass `torch.load(weights_only=True)` before the rest is loaded.

    Raises:
        PermissionDenied: naming what it holds.
        CorruptArtifact: its graph cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as opened:
            if archive.kind == TORCHSCRIPT:
                _check_code(opened, archive, name)
                return []
            return _check_pt2(opened, archive, name)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError, EOFError) as error:
        raise CorruptArtifact(f"'{name}' is damaged: {type(error).__name__}: {error}") from None
    finally:
        file.seek(0)


def _check_code(opened: zipfile.ZipFile, archive: Archive, name: str) -> None:
    for member, inside in archive.members.items():
        if member.startswith("code/") and member.endswith(".py"):
            found = _FILE_OPERATOR.search(opened.read(inside).decode("utf-8", "replace"))
            if found:
                raise PermissionDenied(
                    f"'{name}': its code calls '{found[1]}', which reads or writes files ('{member}'); such a model is "
                    "not loaded"
                )


def _check_pt2(opened: zipfile.ZipFile, archive: Archive, name: str) -> list[str]:
    pickles = [m for m in archive.members if m.startswith("data/") and m.endswith(".pt")]
    for member in archive.members:
        if member.startswith("data/aotinductor/"):
            raise PermissionDenied(
                f"'{name}' holds compiled native code (AOTInductor), which Salver does not run; save the program "
                "itself with torch.export.save"
            )
    for kind in ("weights", "constants"):
        listing = archive.members.get(f"data/{kind}/model_{kind}_config.json")
        config = json.loads(opened.read(listing))["config"] if listing else {}
        for tensor, meta in config.items():
            path = str(meta["path_name"])
            if not path.startswith(("weight_", "tensor_")):
                raise PermissionDenied(f"'{name}': '{tensor}' is an object, not a tensor; such a program is not loaded")
            if meta["use_pickle"]:
                pickles.append(f"data/{kind}/{path}")
    for found in _walk(json.loads(opened.read(archive.members["models/model.json"]))):
        if not found[1](found[0]):
            raise PermissionDenied(
                f"'{name}' names '{found[0][:200]}' in its graph, which is no operator and no arithmetic; such a "
                "program is not loaded"
            )
    return [archive.members[member] for member in pickles]


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every function and expression in a graph, with the check it has to pass."""
    if isinstance(value, list):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "target" and "inputs" in value:
                yield str(item), _FUNCTION.fullmatch
            elif key == "expr_str":
                yield str(item), is_arithmetic
            elif key == "guards_code":
                yield from ((str(guard), is_arithmetic) for guard in item)
            else:
                yield from _walk(item)


def is_arithmetic(text: str) -> bool:
    """Whether an expression does nothing but calculate with sizes."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return not node.id.startswith("__")
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS or node.attr in ("shape", "dtype", "device", "layout", "requires_grad")
    if isinstance(node, ast.Call):
        func = node.func
        called = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
        return called in _METHODS if isinstance(func, ast.Attribute) else _CALLS.fullmatch(called) is not None
    return isinstance(node, _NODES)
