"""Frozen graphs out."""

from __future__ import annotations

from pathlib import Path

import pytest

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from tests import tensorflow_nets as nets


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imported]:
    """A trained network, and one of two outputs whose names are not in the order of the alphabet."""
    folder = tmp_path_factory.mktemp("keras")
    made = {"cnn": nets.cnn(), "recurrent": nets.recurrent()}
    return {name: load_model(model, workdir=folder / name) for name, model in made.items()}


class TestProtobuf(nets.KerasExports):
    exporter_name = "protobuf"
    deterministic = True

    @pytest.fixture(scope="class", params=["cnn", "recurrent"])
    @classmethod
    def imported(cls, request: pytest.FixtureRequest, networks: dict[str, Imported]) -> Imported:
        return networks[request.param]

    @pytest.fixture
    def refused(self, digits: Imported) -> Imported:
        return digits


def test_it_comes_in_again(networks: dict[str, Imported], tmp_path: Path) -> None:
    exported = export_model(networks["cnn"], find_exporter("pb"), tmp_path / "net.pb")
    again = load_model(exported.model.path, workdir=tmp_path / "in")
    assert [spec.shape for spec in again.model.signature.outputs] == [("batch", nets.CLASSES)]
    assert again.parity.outputs[0].max_abs < 1e-4
