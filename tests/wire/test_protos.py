"""Protobuf sets: that what is compiled is what is written, and that it is what clients were made from."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from salver.core.errors import Internal
from salver.wire.protos import ProtoSet

with as_file(files("salver.wire.protos")) as folder:
    FOLDER = Path(folder)
SETS = sorted(path.stem for path in FOLDER.glob("*.proto"))


def test_every_set_is_compiled():
    assert sorted(path.stem for path in FOLDER.glob("*.binpb")) == SETS
    assert {"oip", "health", "reflection_v1", "reflection_v1alpha"} <= set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_compiled_sets_are_those_of_the_sources(name, tmp_path):
    """`make protos` writes them."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(FOLDER), "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={out}", f"{name}.proto"], check=True, timeout=60)
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    assert tuple(compiled.file) == ProtoSet(name).files


@pytest.mark.parametrize("name", SETS)
def test_sets_are_complete_and_private(name):
    """Every type is in the set's own pool, and none in protobuf's default one because of us."""
    protos = ProtoSet(name)
    for service in protos.services:
        for method in protos.pool.FindServiceByName(service).methods:
            message = protos.message(method.input_type.full_name)
            assert message().SerializeToString() == b""
            assert message.DESCRIPTOR.file.pool is protos.pool is not descriptor_pool.Default()
    assert ProtoSet(name).pool is not protos.pool


def test_a_message_that_is_not_there():
    with pytest.raises(Internal, match=r"no protobuf message 'inference\.Nothing'"):
        ProtoSet("oip").message("inference.Nothing")


def shape_of(message):
    """All that decides how a message is written: numbers, types, names, and the same of what is nested in it."""
    fields = set()
    for f in message.field:
        oneof = message.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else None
        fields.add((f.name, f.number, f.type, f.label, f.type_name.rpartition(".")[2], oneof))
    nested = {nested.name: shape_of(nested) for nested in message.nested_type}
    enums = {enum.name: {(v.name, v.number) for v in enum.value} for enum in message.enum_type}
    return fields, nested, enums


def described(module):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def missing(theirs, ours):
    """What a client knows of a message and we do not; a client may be older."""
    gone = [theirs[0] - ours[0]] if theirs[0] - ours[0] else []
    for name, nested in theirs[1].items():
        gone += missing(nested, ours[1][name])
    gone += [values - ours[2][name] for name, values in theirs[2].items() if values - ours[2][name]]
    return gone


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("oip", service_pb2),
        ("oip", model_config_pb2),
        ("health", health_pb2),
        ("reflection_v1alpha", reflection_pb2),
        ("reflection_v1", reflection_pb2),
    ],
)
def test_messages_and_methods_are_those_of_the_clients(name, module):
    ours = ProtoSet(name).files
    messages = {message.name: shape_of(message) for file in ours for message in file.message_type}
    services = {service.name: service for file in ours for service in file.service}
    enums = {enum.name: {(v.name, v.number) for v in enum.value} for file in ours for enum in file.enum_type}
    theirs = described(module)
    for message in theirs.message_type:
        assert missing(shape_of(message), messages[message.name]) == [], message.name
    for enum in theirs.enum_type:
        assert {(v.name, v.number) for v in enum.value} <= enums[enum.name]
    for service in theirs.service:
        for method in service.method:
            [own] = [m for m in services[service.name].method if m.name == method.name]
            assert own.input_type.rpartition(".")[2] == method.input_type.rpartition(".")[2]
            assert own.output_type.rpartition(".")[2] == method.output_type.rpartition(".")[2]
            assert own.client_streaming == method.client_streaming
            assert own.server_streaming == method.server_streaming
