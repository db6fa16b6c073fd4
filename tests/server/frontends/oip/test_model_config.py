"""A served model as Triton's configuration describes it."""

from __future__ import annotations

import msgspec

from salver.server.engine.config import (
    ModelConfig,
    PipelineConfig,
    SequenceConfig,
    StateConfig,
    StepConfig,
    VersionPolicy,
)
from salver.server.frontends.oip.model_config import describe_config
from salver.testing.frontends import SessionModel


def model(models, name, config=None, **metadata):
    found = SessionModel(name, next(m for m in models if m.name == name).session)
    found.metadata = metadata
    found.config = config or ModelConfig()
    return found


def test_a_batched_model_leaves_the_batch_out_of_its_dims(models):
    config = describe_config(model(models, "linear", max_batch=16, lanes=2, merge=True))
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], "format": "FORMAT_NONE"}]
    assert config["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": [3]}]
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (16, 2)
    assert (config["platform"], config["backend"]) == ("onnx_onnxv1", "onnx")
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    assert config["parameters"]["lanes"] == {"string_value": "2"}
    assert msgspec.json.decode(msgspec.json.encode(config)) == config


def test_other_datatypes_and_models_that_are_not_merged(models):
    texts = describe_config(model(models, "id-bytes"))
    assert texts["input"][0]["data_type"] == "TYPE_STRING"
    assert "dynamic_batching" not in texts
    fixed = model(models, "linear")
    fixed.signature = msgspec.structs.replace(
        fixed.signature, inputs=(msgspec.structs.replace(fixed.signature.inputs[0], shape=("...",)),)
    )
    config = describe_config(fixed)
    assert (config["max_batch_size"], config["input"][0]["dims"], config["output"][0]["dims"]) == (0, [-1], [-1, 3])


def test_label_files_are_named(models):
    config = describe_config(model(models, "linear", ModelConfig(label_files={"scores": "labels.txt"})))
    assert config["output"][0]["label_filename"] == "labels.txt"


def test_versions_sequences_and_pipelines(models):
    for policy, expected in (
        (VersionPolicy(latest=2), {"latest": {"num_versions": 2}}),
        (VersionPolicy(latest=0), {"all": {}}),
        (VersionPolicy(specific=("1", "3")), {"specific": {"versions": [1, 3]}}),
        (None, {"latest": {"num_versions": 1}}),
    ):
        assert describe_config(model(models, "linear", ModelConfig(versions=policy)))["version_policy"] == expected
    states = (StateConfig(input="h", output="h_next"),)
    oldest = describe_config(model(models, "linear", ModelConfig(sequence=SequenceConfig(states=states))))
    assert oldest["sequence_batching"] == {
        "max_sequence_idle_microseconds": 60_000_000,
        "oldest": {"max_candidate_sequences": 1024},
        "state": [{"input_name": "h", "output_name": "h_next"}],
    }
    direct = describe_config(model(models, "linear", ModelConfig(sequence=SequenceConfig(strategy="direct"))))
    assert direct["sequence_batching"]["direct"] == {}
    steps = tuple(StepConfig(model="m", version=v, inputs={"a": "x"}, outputs={"y": "b"}) for v in ("", "2"))
    pipeline = PipelineConfig(inputs=("x",), outputs=("b",), steps=steps)
    config = describe_config(model(models, "linear", ModelConfig(pipeline=pipeline)))
    assert [step["model_version"] for step in config["ensemble_scheduling"]["step"]] == [-1, 2]
    assert config["ensemble_scheduling"]["step"][0]["input_map"] == {"a": "x"}
