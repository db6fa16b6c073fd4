"""Where an option's value comes from: flag > `SALVER_*` environment > `salver.toml` > default."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument, NotFound, UnknownName
from salver.core.options import OPTIONS, Kind, Option, options_of
from salver.core.quantities import check_margin, parse_duration, parse_size

CONFIG_FILE: Final = "salver.toml"
_PREFIX: Final = "SALVER_"
_BY_NAME: Final = {option.name: option for option in OPTIONS}
_BOOLEANS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_IN_FILE: Final = tuple(option for option in OPTIONS if not option.flag_only and option.name != "config")
_SOURCE: Final = Option(
    name="source",
    kind="path",
    verbs=(),
    example="digits.salver",
    help="What is served under this name",
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user said, converted; what nobody said is absent, so that the function's own default holds.

    Args:
        values: keyword of the function behind the verb -> value.
        models: name -> the same of a ``[models.NAME]`` table; ``source`` is the path that is served.
        origins: keyword -> where the value came from, as messages name it.
    """

    values: dict[str, Any]
    models: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}


def resolve(verb: str, flags: Mapping[str, str | bool | None], environ: Mapping[str, str], folder: Path) -> Settings:
    """Settings of a verb from all places, the strongest winning.

    Args:
        verb: its options are returned; those of other verbs are checked, and left out.
        flags: option name -> its text, or None where the flag was not given.
        environ: the environment; variables that begin with ``SALVER_`` must be options.
        folder: where `salver.toml` is looked for when no ``config`` is named.

    Raises:
        UnknownName: a variable or key that is no option; the nearest one is offered.
        InvalidArgument: a value of the wrong type, naming the place it came from.
        NotFound: the named configuration file does not exist.
    """
    variables = _read_environment(environ)
    config = flags.get("config") or variables.get("config", ("", ""))[0]
    path = Path(str(config)) if config else folder / CONFIG_FILE
    document = _read_toml(path, required=bool(config))
    models = _read_models(document.pop("models", {}), path)
    found = _read_table(document, path) | variables
    for name, given in flags.items():
        if given is not None:
            option = _BY_NAME[name]
            found[name] = (convert(option, given, option.flag), option.flag)
    wanted = {option.name: option.key for option in options_of(verb) if option.name != "config"}
    return Settings(
        values={wanted[name]: value for name, (value, _) in found.items() if name in wanted},
        models=models,
        origins={wanted[name]: origin for name, (_, origin) in found.items() if name in wanted},
    )


def convert(option: Option, given: Any, origin: str) -> Any:
    """The value of an option.

    Args:
        given: text from a flag or a variable, or a TOML value.
        origin: where it came from, for the message.

    Raises:
        InvalidArgument: ``<origin>: got 'two', expected an integer``.
    """
    try:
        value = _convert(option, given)
    except InvalidArgument as error:
        raise InvalidArgument(f"{origin}: {error.message}") from None
    if option.choices and value not in option.choices:
        raise InvalidArgument(f"{origin}: got '{given}', expected one of {', '.join(option.choices)}")
    if option.minimum is not None and value < option.minimum:
        raise InvalidArgument(f"{origin}: got '{given}', expected at least {option.minimum:g}")
    return value


def _convert(option: Option, given: Any) -> Any:
    if isinstance(given, str) and given:
        return _FROM_TEXT[option.kind](given)
    match option.kind, given:
        case "boolean", bool():
            return given
        case "integer" | "size" | "duration", int() if not isinstance(given, bool):
            return given
        case "duration" | "number", float() if math.isfinite(given):
            return given
        case "number", int() if not isinstance(given, bool):
            return float(given)
        case "list", list() if all(isinstance(item, str) for item in given):
            return tuple(given)
    raise InvalidArgument(f"got '{given}', expected {_EXPECTED[option.kind]}")


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise InvalidArgument(f"got '{text}', expected {_EXPECTED['boolean']}")
    return _BOOLEANS[text.lower()]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"got '{text}', expected {_EXPECTED['integer']}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidArgument(f"got '{text}', expected {_EXPECTED['number']}")
    return value


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


_FROM_TEXT: Final[dict[Kind, Callable[[str], Any]]] = {
    "text": str,
    "path": Path,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "duration": parse_duration,
    "size": parse_size,
    "margin": check_margin,
    "list": _list,
}
_EXPECTED: Final[dict[Kind, str]] = {
    "text": "a text",
    "path": "a path",
    "integer": "an integer",
    "number": "a number such as 1e-4",
    "boolean": "true or false",
    "duration": "a duration such as 30s",
    "size": "a size such as 64MiB",
    "margin": "a margin such as 0.5pp",
    "list": "a list of texts",
}


# Set by others: Kubernetes describes a Service named salver or salver-NAME to every pod beside it
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables), and scripts around Salver
# name the folder of its program and the flags they add.
_NOT_OURS: Final = re.compile(
    r"SALVER(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)"
    r"|SALVER_(BIN|FLAGS)"
)


def _read_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    known = {option.variable: option for option in OPTIONS if not option.flag_only}
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or not text or _NOT_OURS.fullmatch(variable):
            continue
        if variable not in known:
            raise UnknownName("environment variable", variable, known)
        option = known[variable]
        found[option.name] = (convert(option, text, variable), variable)
    return found


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise NotFound(f"no such configuration file: '{path}'") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None


def _read_table(table: Mapping[str, Any], file: Path) -> dict[str, tuple[Any, str]]:
    known = {option.name: option for option in _IN_FILE}
    found = {}
    for key, given in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UnknownName(f"key in {file.name}", key, (*known, "models"))
        found[name] = (_convert_in_file(known[name], given, f"{file.name}: {key}", file), f"{file.name}: {key}")
    return found


def _read_models(tables: Any, file: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InvalidArgument(f"{file.name}: 'models' must hold tables: [models.NAME]")
    known = {option.name: option for option in _IN_FILE if option.per_model} | {_SOURCE.name: _SOURCE}
    models: dict[str, dict[str, Any]] = {}
    for model, table in tables.items():
        place = f"{file.name}:[models.{model}]"
        models[model] = {}
        for key, given in table.items():
            name = key.replace("-", "_")
            if name not in known:
                raise UnknownName(f"key in {place}", key, known)
            models[model][known[name].key] = _convert_in_file(known[name], given, f"{place}.{key}", file)
    return models


def _convert_in_file(option: Option, given: Any, origin: str, file: Path) -> Any:
    """A path in a file of settings is relative to that file."""
    value = convert(option, given, origin)
    return file.parent / value if option.kind == "path" else value
