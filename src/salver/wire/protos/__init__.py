"""Protobuf messages in a private descriptor pool.

Other packages of the same process (tritonclient, tensorflow, kserve) register files of the same names in protobuf's
default pool, where a second definition is an error. Each set of ours has a pool of its own. A set is a
``FileDescriptorSet`` compiled from the ``.proto`` files beside this module by ``make protos``; a test compiles it again
and compares.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from salver.core.errors import Internal

Message = type[Any]
"""A message class of protobuf's; the library has no useful types for one made at run time."""


class ProtoSet:
    """The messages of one compiled set.

    Args:
        name: of the file ``<name>.binpb`` beside this module.
    """

    def __init__(self, name: str) -> None:
        compiled = descriptor_pb2.FileDescriptorSet.FromString(
            files(__package__).joinpath(f"{name}.binpb").read_bytes()
        )
        self.pool = descriptor_pool.DescriptorPool()
        self.files = tuple(compiled.file)
        """The files, each after those it imports."""
        for file in self.files:
            self.pool.Add(file)

    def message(self, full_name: str) -> Message:
        """The class of a message, ``inference.ModelInferRequest``.

        Raises:
            Internal: there is none of that name in the set.
        """
        try:
            found: Message = message_factory.GetMessageClass(self.pool.FindMessageTypeByName(full_name))
        except KeyError:
            raise Internal(f"no protobuf message '{full_name}' in this set") from None
        return found

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of all services, for reflection."""
        prefix = {file.name: f"{file.package}." if file.package else "" for file in self.files}
        return tuple(prefix[file.name] + service.name for file in self.files for service in file.service)
