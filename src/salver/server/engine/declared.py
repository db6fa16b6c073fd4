"""What a folder's configuration says of tensors, beside what the model itself says of them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from salver.core.errors import InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.config import ModelConfig, TensorConfig


def check_declared(config: ModelConfig, signature: Signature) -> None:
    """Compare what a folder's configuration says of tensors with the model's own signature.

    Raises:
        InvalidArgument: they contradict each other; names both.
    """
    for kind, declared, specs in (
        ("input", config.inputs, signature.inputs),
        ("output", config.outputs, signature.outputs),
    ):
        own = {spec.name: spec for spec in specs}
        for tensor in declared:
            spec = own.get(tensor.name)
            if spec is None:
                names = ", ".join(f"'{name}'" for name in own)
                raise InvalidArgument(
                    f"the configuration names {kind} '{tensor.name}', which the model has not; it has {names}"
                )
            if not _agree(tensor, spec):
                said = f"{tensor.datatype or spec.datatype}{format_shape(tensor.shape or spec.shape)}"
                raise InvalidArgument(
                    f"{kind} '{tensor.name}': the configuration says {said}, "
                    f"the model has {spec.datatype}{format_shape(spec.shape)}"
                )


def _agree(tensor: TensorConfig, spec: TensorSpec) -> bool:
    if tensor.datatype and tensor.datatype != spec.datatype:
        return False
    if tensor.shape is None or not spec.rank_known:
        return True
    if len(tensor.shape) != len(spec.shape):
        return False
    pairs = zip(tensor.shape, spec.shape, strict=True)
    return all(said == -1 or not isinstance(dim, int) or said == dim for said, dim in pairs)


def name_classes(signature: Signature, names: Mapping[str, tuple[str, ...]]) -> Signature:
    """Give outputs the names of their classes.

    Args:
        names: output -> names, in the order of its last dimension.

    Raises:
        InvalidArgument: the model has no such output.
    """
    for name in names:
        if name not in signature.output_names:
            raise InvalidArgument(
                f"there is a label file for output '{name}', which the model has not; it has "
                + ", ".join(f"'{output}'" for output in signature.output_names)
            )
    outputs = tuple(
        msgspec.structs.replace(spec, labels=names[spec.name]) if spec.name in names else spec
        for spec in signature.outputs
    )
    return msgspec.structs.replace(signature, outputs=outputs)
