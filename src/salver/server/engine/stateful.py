"""Which tensors of a model carry the state of a sequence: what clients see of it, and what the server fills in.

Batches are concatenated and cut along the first dimension, but a state may have its batch dimension elsewhere (an LSTM
keeps ``[layers, batch, hidden]``). `SequenceView` moves it to the front, so that states travel as other tensors do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.base import SequenceStep
from salver.server.engine.config import ControlConfig, SequenceConfig, StateConfig

_ID_LENGTH: Final = 128  # as Triton has it

State = dict[str, Array]
"""Input -> its value for the next request of a sequence; batch dimension first."""


class _State(msgspec.Struct, frozen=True):
    spec: TensorSpec
    output: str
    axis: int
    initial: Array


class _Control(msgspec.Struct, frozen=True):
    name: str
    kind: str
    spec: TensorSpec
    shape: tuple[int, ...]
    off: Array
    on: Array


class Stateful:
    """The signature of a model with state, taken apart.

    Args:
        signature: the session's.
        config: says which tensors are states and controls.

    Raises:
        InvalidArgument: it names a tensor that the model does not have, or one of a datatype that does not fit.
    """

    def __init__(self, signature: Signature, config: SequenceConfig) -> None:
        for name in ("max_sequences", "idle_timeout_s", "max_state_bytes"):
            if not getattr(config, name) > 0:
                raise InvalidArgument(f"sequence.{name}: got {getattr(config, name)}, expected more than 0")
        taken = [state.input for state in config.states] + [control.input for control in config.controls]
        given = [state.output for state in config.states]
        for names, kind in ((taken, "input"), (given, "output")):
            if len(set(names)) != len(names):
                raise InvalidArgument(f"sequence: an {kind} is named twice: {', '.join(sorted(names))}")
        _check_names(signature, taken, given)
        self.served = Signature(
            inputs=tuple(spec for spec in signature.inputs if spec.name not in taken),
            outputs=tuple(spec for spec in signature.outputs if spec.name not in given),
        )
        batch = self.served.batch_dim
        axes = [_axis(signature, state, batch) for state in config.states]
        fronts = [_is_front(signature.input(control.input), batch) for control in config.controls]
        self.batched = batch is not None and None not in axes and all(fronts)
        moved = [axis if self.batched and axis is not None else 0 for axis in axes]
        self._states = tuple(
            _State(signature.input(state.input), state.output, axis, _initial(signature, state))
            for state, axis in zip(config.states, moved, strict=True)
        )
        self._controls = tuple(_control(signature.input(control.input), control) for control in config.controls)
        self._outputs = tuple(given)
        self.ragged = any(
            isinstance(dim, str) and not (self.batched and dim == batch)
            for state in self._states
            for dim in state.spec.shape
        )
        """Whether a state has symbolic dimensions besides the batch, so that its shape may change."""
        self.keeps_state = bool(config.states)
        """Whether the server keeps the state, and not the model itself."""

    def view(self, session: Session) -> Session:
        """The session with the batch dimension of every state in front; the session itself where it is there."""
        inputs = {state.spec.name: state.axis for state in self._states if state.axis}
        outputs = {state.output: state.axis for state in self._states if state.axis}
        return SequenceView(session, inputs, outputs) if inputs else session

    def to_view(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as the session takes them, as its view takes them."""
        axes = {state.spec.name: state.axis for state in self._states}
        return {name: np.moveaxis(array, axes.get(name, 0), 0) for name, array in inputs.items()}

    def check_id(self, sequence: int | str) -> None:
        """Check that an id can be kept, and the model be told it.

        Raises:
            InvalidArgument: a long text; a text, or a number too large, for a control input of whole numbers.
        """
        if isinstance(sequence, str) and len(sequence) > _ID_LENGTH:
            raise InvalidArgument(f"sequence_id has {len(sequence)} characters, expected at most {_ID_LENGTH}")
        for control in self._controls:
            if control.kind != "corrid" or control.spec.datatype == "BYTES":
                continue
            largest = int(np.iinfo(control.spec.dtype).max)
            if isinstance(sequence, str) or sequence > largest:
                raise InvalidArgument(
                    f"sequence_id is {sequence!r}, but the model takes it as {control.spec.datatype}: expected a whole "
                    f"number up to {largest}"
                )

    def initial(self, inputs: Mapping[str, Array]) -> State:
        """The state at the start of a sequence. Symbolic dimensions have the size they have in the inputs, else 1."""
        sizes: dict[str, int] = {}
        for spec in self.served.inputs if self.ragged else ():
            if spec.rank_known:
                sizes.update(zip(map(str, spec.shape), inputs[spec.name].shape, strict=True))
        made = {}
        for state in self._states:
            shape = tuple(dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in state.spec.shape)
            array = np.broadcast_to(state.initial, shape)
            made[state.spec.name] = np.moveaxis(array, state.axis, 0) if state.axis else array
        return made

    def controls(self, step: SequenceStep) -> dict[str, Array]:
        """The control inputs of one request."""
        made = {}
        for control in self._controls:
            if control.kind == "corrid":
                value = str(step.id) if control.spec.datatype == "BYTES" else step.id
                made[control.name] = np.full(control.shape, value, control.spec.dtype)
            else:
                on = control.kind == "ready" or getattr(step, control.kind)
                made[control.name] = control.on if on else control.off
        return made

    @property
    def blanks(self) -> dict[str, Array]:
        """The control inputs of a slot without a request."""
        return {control.name: control.off for control in self._controls}

    def shapes(self, state: State) -> tuple[tuple[int, ...], ...]:
        """What must be equal for states to be concatenated."""
        return tuple(array.shape[1:] for array in state.values())

    def widen(self, outputs: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The outputs to ask of the session for those a client wants."""
        return None if outputs is None else (*outputs, *self._outputs)

    def take(self, outputs: dict[str, Array], *, shared: bool) -> State:
        """Take the next state out of the outputs of one request.

        Args:
            shared: whether they are parts of a larger batch, which must not live as long as the sequence.
        """
        taken = {state.spec.name: outputs.pop(state.output) for state in self._states}
        return {name: array.copy() for name, array in taken.items()} if shared else taken


class SequenceView(Session):
    """A session whose states have their batch dimension in front.

    Args:
        session: runs.
        inputs, outputs: name -> the batch dimension's place.
    """

    def __init__(self, session: Session, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        own = session.signature
        self._signature = Signature(
            inputs=tuple(_moved(spec, inputs) for spec in own.inputs),
            outputs=tuple(_moved(spec, outputs) for spec in own.outputs),
        )

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        feed = dict(inputs)
        for name, axis in self._inputs.items():
            if name in feed:
                feed[name] = np.moveaxis(feed[name], 0, axis)
        found = self._session.run(feed, outputs)
        for name, axis in self._outputs.items():
            if name in found:
                found[name] = np.moveaxis(found[name], axis, 0)
        return found

    def close(self) -> None:
        self._session.close()


def _moved(spec: TensorSpec, axes: Mapping[str, int]) -> TensorSpec:
    axis = axes.get(spec.name, 0)
    shape = spec.shape
    return msgspec.structs.replace(spec, shape=(shape[axis], *shape[:axis], *shape[axis + 1 :])) if axis else spec


def _check_names(signature: Signature, taken: list[str], given: list[str]) -> None:
    for name in taken:
        signature.input(name)
    for name in given:
        signature.output(name)
    if len(taken) == len(signature.inputs) or len(given) == len(signature.outputs):
        raise InvalidArgument("sequence: states and controls leave no input, or no output, for clients")


def _axis(signature: Signature, state: StateConfig, batch: str | None) -> int | None:
    """The place of the batch dimension, the same in a state's input and output; None where there is none."""
    source, target = signature.input(state.input), signature.output(state.output)
    if source.datatype != target.datatype:
        raise InvalidArgument(
            f"sequence: state input '{source.name}' is {source.datatype}, but its output '{target.name}' is "
            f"{target.datatype}"
        )
    if batch not in source.shape or batch not in target.shape:
        return None
    axis = source.shape.index(batch)
    return axis if target.shape.index(batch) == axis else None


def _is_front(spec: TensorSpec, batch: str | None) -> bool:
    return bool(spec.shape) and spec.shape[0] == batch


def _initial(signature: Signature, state: StateConfig) -> Array:
    spec = signature.input(state.input)
    return _value(spec, state.initial, f"state input '{spec.name}'")


def _value(spec: TensorSpec, value: float, what: str) -> Array:
    """A number as a scalar of a tensor's datatype."""
    if spec.datatype == "BYTES":
        raise InvalidArgument(f"sequence: {what} is BYTES; expected numbers")
    if spec.datatype == "BF16":
        return np.asarray(np.float32(value).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.kind in "iu" and not (
        float(value).is_integer() and np.iinfo(spec.dtype).min <= value <= np.iinfo(spec.dtype).max
    ):
        raise InvalidArgument(f"sequence: {what} is {spec.datatype}, which has no value {value}")
    return np.asarray(value).astype(spec.dtype)


def _control(spec: TensorSpec, control: ControlConfig) -> _Control:
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)
    what = f"control input '{spec.name}'"
    if control.kind == "corrid":
        if spec.dtype.kind not in "iuO" or spec.datatype == "BF16":
            raise InvalidArgument(f"sequence: {what} is {spec.datatype}; a sequence's id is a whole number or BYTES")
        blank = np.full(shape, "" if spec.datatype == "BYTES" else 0, spec.dtype)
        return _Control(spec.name, control.kind, spec, shape, blank, blank)
    off, on = (np.broadcast_to(_value(spec, value, what), shape) for value in (control.off, control.on))
    return _Control(spec.name, control.kind, spec, shape, off, on)
