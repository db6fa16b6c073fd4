"""Triton's model configuration: what is understood, what is ignored and said, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format

from salver.core.errors import InvalidArgument, SalverError, Unimplemented
from salver.server.engine._pbtxt import CACHE_BYTES, read_json, read_text
from salver.server.engine.config import (
    ControlConfig,
    ModelConfig,
    PipelineConfig,
    SequenceConfig,
    StateConfig,
    StepConfig,
    TensorConfig,
    VersionPolicy,
    WarmUp,
)
from salver.wire.protos import ProtoSet


def read(text: str) -> ModelConfig:
    return read_text(text, "m/config.pbtxt", "m")


BATCHED = """
name: "m"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] } ]
output [ { name: "y" data_type: TYPE_STRING dims: [ 2 ] label_filename: "labels.txt" } ]
version_policy: { latest { num_versions: 2 } }
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0 ] } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  default_queue_policy { default_timeout_microseconds: 250000 max_queue_size: 64 timeout_action: DELAY }
}
model_warmup [ { name: "w" batch_size: 4 count: 3 inputs { key: "x" value { dims: 3 zero_data: true } } } ]
response_cache { enable: true }
optimization { graph { level: 1 } }
parameters { key: "intra_op_thread_count" value { string_value: "4" } }
"""


def test_what_has_meaning_is_understood_and_the_rest_is_listed() -> None:
    assert read(BATCHED) == ModelConfig(
        versions=VersionPolicy(latest=2),
        lanes=3,
        max_batch=8,
        max_queue=64,
        default_timeout_s=0.25,
        response_cache_bytes=CACHE_BYTES,
        warm_up=(WarmUp(rows=4, count=3),),
        label_files={"y": "labels.txt"},
        inputs=(TensorConfig(name="x", datatype="FP32", shape=(-1, 3, -1)),),
        outputs=(TensorConfig(name="y", datatype="BYTES", shape=(-1, 2)),),
        ignored=(
            "instance_group.gpus",
            "dynamic_batching.preferred_batch_size",
            "dynamic_batching.max_queue_delay_microseconds",
            "dynamic_batching.default_queue_policy.timeout_action",
            "optimization",
            "parameters",
            "model_warmup.inputs",
        ),
    )


def test_json_says_the_same_as_text() -> None:
    message = text_format.Parse(BATCHED, ProtoSet("oip").message("inference.ModelConfig")())
    for names in (True, False):
        data = json.loads(json_format.MessageToJson(message, preserving_proto_field_name=names))
        assert read_json(data, "m") == read(BATCHED)


def test_protobuf_is_imported_only_where_there_is_such_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from salver.server.engine.folder import read_folder\n"
        "def loaded(): read_folder(Path(sys.argv[1]), 'm'); return 'google.protobuf' in sys.modules\n"
        "assert not loaded(); Path(sys.argv[1], 'config.pbtxt').touch(); assert loaded()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_an_empty_file_says_nothing() -> None:
    assert read("") == read_json({}, "m") == ModelConfig()


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { latest {} }", VersionPolicy(latest=1)),
        ("version_policy { all {} }", VersionPolicy(latest=0)),
        ("version_policy { specific { versions: [ 1, 3 ] } }", VersionPolicy(specific=("1", "3"))),
        ("max_batch_size: 0", None),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy | None) -> None:
    assert read(text).versions == policy


def test_without_batching_dims_are_the_whole_shape() -> None:
    config = read('input { name: "x" dims: [ 4, 2 ] } output { name: "y" data_type: TYPE_BF16 }')
    assert config.inputs == (TensorConfig(name="x", shape=(4, 2)),)
    assert config.outputs == (TensorConfig(name="y", datatype="BF16"),)
    assert config.max_batch is None


def test_sequences_with_states_and_controls() -> None:
    text = """
    sequence_batching {
      max_sequence_idle_microseconds: 5000000
      oldest { max_candidate_sequences: 16 preferred_batch_size: [ 4 ] }
      control_input [
        { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
        { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 5, 6 ] } ] },
        { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } ] },
        { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
      ]
      state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ 2 ]
                initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } } ]
    }
    """
    config = read(text)
    assert config.sequence == SequenceConfig(
        strategy="oldest",
        max_sequences=16,
        idle_timeout_s=5.0,
        states=(StateConfig(input="s", output="t"),),
        controls=(
            ControlConfig(input="START", kind="start"),
            ControlConfig(input="END", kind="end", off=5.0, on=6.0),
            ControlConfig(input="READY", kind="ready"),
            ControlConfig(input="ID", kind="corrid"),
        ),
    )
    assert config.ignored == ("sequence_batching.oldest.preferred_batch_size",)
    assert read("sequence_batching {}").sequence == SequenceConfig(strategy="direct")


def test_ensembles_are_pipelines() -> None:
    text = """
    platform: "ensemble"
    input [ { name: "IN" data_type: TYPE_FP32 dims: [ 2 ] } ]
    output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] } ]
    ensemble_scheduling {
      step [
        { model_name: "a" model_version: -1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "mid" } },
        { model_name: "b" model_version: 2 input_map { key: "x" value: "mid" } output_map { key: "y" value: "OUT" } }
      ]
    }
    """
    assert read(text).pipeline == PipelineConfig(
        inputs=("IN",),
        outputs=("OUT",),
        steps=(
            StepConfig(model="a", inputs={"x": "IN"}, outputs={"y": "mid"}),
            StepConfig(model="b", version="2", inputs={"x": "mid"}, outputs={"y": "OUT"}),
        ),
    )


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("max_batch: 3", InvalidArgument, r"m/config.pbtxt.*1:1.*no field named \"max_batch\""),
        ("input {", InvalidArgument, "m/config.pbtxt"),
        ("max_batch_size: many", InvalidArgument, "m/config.pbtxt"),
        ('name: "other"', InvalidArgument, "'other'; it is served as 'm'"),
        ('platform: "tensorflow_savedmodel"', Unimplemented, "Salver runs onnxruntime_onnx, ensemble"),
        ('backend: "python"', Unimplemented, "backend 'python'"),
        ("sequence_batching { iterative_sequence: true }", Unimplemented, "iterative_sequence"),
        ('input { name: "x" dims: [ 1 ] reshape { shape: [] } }', Unimplemented, "reshape of 'x'"),
        (
            'sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_START } } }',
            InvalidArgument,
            "control input 'S': expected two values",
        ),
        (
            'sequence_batching { state { input_name: "s" initial_state { data_file: "f" } } }',
            Unimplemented,
            "state 's': an initial value from a file",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(text: str, error: type[SalverError], says: str) -> None:
    with pytest.raises(error, match=says):
        read(text)


@pytest.mark.parametrize("data", [{"max_batch": 3}, {"input": 1}, {"max_batch_size": "x"}, {"input": [{"dims": [[]]}]}])
def test_json_that_does_not_fit_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="the configuration of model 'm'"):
        read_json(data, "m")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input": [{"name": "x", "data_type": 99}]}, "tensor 'x': there is no data_type 99"),
        (
            {"sequence_batching": {"control_input": [{"name": "s", "control": [{"kind": -1}]}]}},
            "control input 's': there is no kind -1",
        ),
        ({"max_batch_size": float("inf")}, "the configuration of model 'm'"),
    ],
)
def test_numbers_that_json_lets_in_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read_json(config, "m")
