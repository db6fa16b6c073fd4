from __future__ import annotations

import pytest

from salver.core import errors
from salver.core.errors import Code, MissingExtra, SalverError, UnknownName, UntrustedPickle, format_shape

CLASSES = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, SalverError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_canonical_code(kind: type[SalverError]) -> None:
    assert kind.code in Code


def test_every_code_has_an_error() -> None:
    assert {kind.code for kind in CLASSES} == set(Code)


def test_messages_say_what_to_do() -> None:
    assert MissingExtra("build --distill", "PyTorch", "torch").message == (
        "build --distill needs PyTorch: pip install 'salver[torch]'"
    )
    assert "--trust-pickle" in UntrustedPickle("m.pkl").message
    assert UnknownName("metric", "acuracy", ["accuracy", "auc"]).message == (
        "unknown metric 'acuracy'. Did you mean 'accuracy'? Valid: accuracy, auc"
    )
    assert UnknownName("metric", "acuracy" * 100, ["accuracy"]).message.endswith("'. Valid: accuracy")
    assert UnknownName("model", "x", []).message == "unknown model 'x'. Valid: (none)"


def test_an_error_may_say_when_to_come_back() -> None:
    error = errors.ResourceExhausted("full", retry_after_s=1.5)
    assert (str(error), error.retry_after_s) == ("full", 1.5)


def test_an_error_can_be_told_in_other_words() -> None:
    first = UnknownName("input", "x", ["y"])
    first.retry_after_s = 2.0
    second = first.reworded("step 2: no input 'x'")
    assert (type(second), second.message, str(second)) == (UnknownName, "step 2: no input 'x'", "step 2: no input 'x'")
    assert second.retry_after_s == 2.0
    assert first.message.startswith("unknown input 'x'")
    assert errors.TooLarge("large", limit="max_body_bytes").reworded("too large").limit == "max_body_bytes"


def test_shapes_are_written_as_people_read_them() -> None:
    assert format_shape(["batch", 28, -1]) == "[batch, 28, -1]"
