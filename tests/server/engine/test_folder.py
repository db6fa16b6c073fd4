"""What a model's own folder says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from salver.core.errors import InvalidArgument, SalverError, TooLarge, UnknownName
from salver.server.engine.config import ModelConfig, SequenceConfig, StateConfig, VersionPolicy
from salver.server.engine.folder import Told, read_folder

WHOLE = """
versions = "latest:2"
labels = {stable = "1"}
max_batch = 16
default_timeout_s = 2
label_files = {y = "names.txt"}

[sequence]
strategy = "direct"
states = [{input = "s", output = "t", initial = 1.5}]
"""


def test_a_model_toml_has_the_fields_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(WHOLE)
    (tmp_path / "names.txt").write_text("cat\n dog \n")
    (tmp_path / "config.pbtxt").write_text("what stands here is not read")
    told = read_folder(tmp_path, "m")
    assert told.config == ModelConfig(
        versions=VersionPolicy(latest=2),
        labels={"stable": "1"},
        max_batch=16,
        default_timeout_s=2.0,
        label_files={"y": "names.txt"},
        sequence=SequenceConfig(strategy="direct", states=(StateConfig(input="s", output="t", initial=1.5),)),
    )
    assert told.class_names == {"y": ("cat", "dog")}


def test_a_config_pbtxt_is_read_where_there_is_no_model_toml(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 4 optimization { graph { level: 1 } }")
    told = read_folder(tmp_path, "m")
    assert told.config.max_batch == 4
    assert told.config.ignored == ("optimization",)
    assert read_folder(tmp_path, "m", {"max_batch_size": 5}).config.max_batch == 5


@pytest.mark.parametrize("key", ["version_policy", "versionPolicy"])
def test_a_configuration_of_versions_alone_leaves_the_rest(tmp_path: Path, key: str) -> None:
    (tmp_path / "model.toml").write_text("lanes = 3\nversions = 'latest:2'")
    told = read_folder(tmp_path, "m", {key: {"all": {}}})
    assert (told.config.lanes, told.config.versions) == (3, VersionPolicy(latest=2))
    assert told.asked == ModelConfig(versions=VersionPolicy(latest=0))
    assert read_folder(tmp_path, "m", {key: {"all": {}}, "max_batch_size": 2}).config.lanes is None
    assert read_folder(tmp_path, "m", {}).config.lanes == 3


def test_nothing_is_said_of_a_single_file(tmp_path: Path) -> None:
    assert read_folder(tmp_path, "m") == Told()
    (tmp_path / "model.onnx").write_bytes(b"")
    assert read_folder(tmp_path / "model.onnx", "m") == Told()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("lane = 2", UnknownName, "Did you mean 'lanes'"),
        ("ignored = ['x']", UnknownName, "ignored"),
        ("lanes = 'two'", InvalidArgument, r"model.toml.*lanes"),
        ("versions = 'newest'", InvalidArgument, "expected latest, latest:N, all, or numbers"),
        ("versions = 'latest:0'", InvalidArgument, "latest:0"),
        ("sequence = {strategi = 'oldest'}", InvalidArgument, "strategi"),
        ("lanes = ", InvalidArgument, "model.toml"),
        ("label_files = {y = 'missing.txt'}", InvalidArgument, "missing.txt"),
        ("label_files = {y = '../names.txt'}", InvalidArgument, "is not in the model's folder"),
        ("label_files = {y = '/etc/hostname'}", InvalidArgument, "is not in the model's folder"),
        ("lanes = 1 # \udcff", InvalidArgument, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, text: str, error: type[SalverError], says: str) -> None:
    (tmp_path / "model.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=says):
        read_folder(tmp_path, "m")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.toml").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(TooLarge, match="at most"):
        read_folder(tmp_path, "m")


@pytest.mark.parametrize("asked", [{"batchSize": 1 << 31}, {"batchSize": 1, "count": 1 << 31}])
def test_a_warm_up_without_end_is_refused(tmp_path, asked):
    with pytest.raises(InvalidArgument, match=r"warm-up: .* expected 1 to 65536"):
        read_folder(tmp_path, "m", {"modelWarmup": [{"name": "w", **asked}]})
