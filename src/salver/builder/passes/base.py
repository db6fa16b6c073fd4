"""The port of the `passes` family: `Model` -> `Model`."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from salver.core.config import Config
from salver.core.dataset import Dataset
from salver.core.model import Model

C = TypeVar("C", bound=Config)


class PassContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass may use besides its config.

    Args:
        workdir: an empty folder of its own; the files of the result are written there.
        calibration: examples bound to the model's inputs (column names are input names), for passes that observe
            activations; None when there are none.
        threads: how many threads it may use.
        native: the imported model in its framework's own format, where there is one and it may be used.
        tolerance: within which the import gave the original's answers (`certify`), for passes that prove theirs; None
            takes what follows from datatype and depth.
    """

    workdir: Path
    calibration: Dataset | None = None
    threads: int = 1
    native: Model | None = None
    tolerance: float | None = None


class Pass(abc.ABC, Generic[C]):
    """Makes another model from a model.

    The input is never changed. The signature is preserved. The same model, config and calibration data give the same
    bytes. A pass never returns its input: when there is nothing to do, or it cannot be done, it raises.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    needs_calibration: ClassVar[bool] = False
    changes_numbers: ClassVar[bool] = True
    """Whether answers are meant to change (quantization, pruning), so that quality judges them and not parity."""
    moves: ClassVar[bool] = False
    """Whether another backend runs the result, which then has to give the same answers on the examples."""
    gives_speed: ClassVar[str] = ""
    """One sentence for the report when no speed-up is to be expected ("dense kernels do not skip zeros")."""

    def __init__(self, config: C) -> None:
        self.config = config

    @abc.abstractmethod
    def apply(self, model: Model, context: PassContext) -> Model:
        """Make the new model; its lineage gains one `Step`.

        Raises:
            PassNotApplicable: with the reason, in words a user understands.
            MissingExtra: an optional library is needed.
            FailedPrecondition: calibration data is needed and there is none.
        """
