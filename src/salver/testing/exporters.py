"""Conformance of the `exporters` family: subclass `ExporterConformance` once per member."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from salver.backends import find_backend, open_session
from salver.builder.exporters import EXPORTERS, Exported, Exporter, ExportOptions, export_model, find_exporter
from salver.builder.exporters.prove import probe_of, renamed
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset
from salver.core.errors import AlreadyExists, InvalidArgument, NotFound, SalverError, Unimplemented
from salver.core.model import digest_file


class ExporterConformance:
    """What every exporter keeps.

    A member's test sets `exporter_name` and has the fixture ``imported``, a model it takes, with a batch dimension. It
    may override ``data``, examples for it, and ``refused``, a model that has no clean route.
    """

    exporter_name: ClassVar[str]
    options: ClassVar[ExportOptions] = ExportOptions()
    deterministic: ClassVar[bool] = True
    """Whether the same model gives the same bytes."""
    runs: ClassVar[bool] = True
    """Whether a backend runs what is written; not so for weights alone."""
    atol: ClassVar[float] = 1e-4

    @pytest.fixture
    def imported(self, tmp_path: Path) -> Imported:
        """A model this exporter takes."""
        raise NotImplementedError

    @pytest.fixture
    def data(self) -> Dataset | None:
        """Examples for it."""
        return None

    @pytest.fixture
    def refused(self) -> Imported | None:
        """A model that has no clean route into this format, if there is one."""
        return None

    @pytest.fixture
    def exporter(self) -> Exporter:
        """The member."""
        return find_exporter(self.exporter_name)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An empty folder."""
        path = tmp_path / "out"
        path.mkdir()
        return path

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """The empty folder it is exported to."""
        path = tmp_path / "exported"
        path.mkdir()
        return path

    @pytest.fixture
    def exported(self, exporter: Exporter, imported: Imported, data: Dataset | None, place: Path) -> Exported:
        """The model, exported. A member whose export takes long gives this and ``place`` a wider scope."""
        return export_model(imported, exporter, place / f"net{exporter.suffix}", data=data, options=self.options)

    def test_the_file_loads_and_gives_the_same_answers_at_every_batch_size(
        self, exported: Exported, imported: Imported, data: Dataset | None
    ) -> None:
        if not self.runs:
            pytest.skip("weights alone: nothing runs them")
        source = imported.native or imported.model
        with open_session(source) as original, open_session(exported.model) as made:
            probe, leading = probe_of(source.signature, original.run, data)
            run = renamed(made, source.signature)
            for rows in {1, 3, probe.rows} if leading.batched and not leading.fixed else {probe.rows}:
                inputs = probe.cut(0, rows) if leading.batched else probe.inputs
                expected, got = original.run(inputs), run(inputs)
                for name, array in expected.items():
                    assert got[name].shape == array.shape
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(got[name], array, rtol=self.atol, atol=self.atol)
                    else:
                        assert np.mean(got[name] == array) == 1.0

    def test_the_certificate_covers_every_output_at_several_batch_sizes(
        self, exported: Exported, imported: Imported
    ) -> None:
        if not self.runs:
            assert exported.parity is None
            return
        assert exported.parity is not None
        assert len(exported.parity.outputs) == len(imported.model.signature.outputs)
        assert len(exported.parity.batch_sizes) >= 2
        assert find_backend(exported.model.format).versions().items() <= exported.parity.versions.items()
        assert exported.route

    def test_it_writes_where_told_and_nothing_else(self, exported: Exported, exporter: Exporter, place: Path) -> None:
        main = place / f"net{exporter.suffix}"
        assert exported.model.path == main or exported.model.path.is_relative_to(main)
        files = {path for path in place.rglob("*") if path.is_file()}
        assert files == {blob.path for blob in exported.model.blobs}
        assert all(path.relative_to(place).parts[0].startswith("net") for path in files)
        assert all(blob.digest == digest_file(blob.path) for blob in exported.model.blobs)

    def test_lineage_names_the_export(self, exported: Exported, imported: Imported) -> None:
        *before, step = exported.model.lineage
        assert (step.action, step.name) == ("export", self.exporter_name)
        assert step.output_digest == exported.model.blobs[0].digest
        assert step.tools
        assert before

    def test_the_same_model_gives_the_same_bytes(
        self, exported: Exported, exporter: Exporter, imported: Imported, data: Dataset | None, tmp_path: Path
    ) -> None:
        if not self.deterministic:
            pytest.skip("the format's own writer puts a time or an identifier in")
        again = tmp_path / "again"
        again.mkdir()
        made = export_model(imported, exporter, again / f"net{exporter.suffix}", data=data, options=self.options)
        assert [blob.digest for blob in made.model.blobs] == [blob.digest for blob in exported.model.blobs]

    def test_an_older_file_is_replaced_and_a_folder_is_not(
        self, exporter: Exporter, imported: Imported, data: Dataset | None, folder: Path
    ) -> None:
        if exporter.suffix:
            (folder / f"net{exporter.suffix}").write_bytes(b"old")
            export_model(imported, exporter, folder / f"net{exporter.suffix}", data=data, options=self.options)
            assert (folder / f"net{exporter.suffix}").read_bytes() != b"old"
        (folder / "taken").mkdir()
        with pytest.raises(AlreadyExists, match="taken"):
            export_model(imported, exporter, folder / "taken", data=data, options=self.options)

    def test_a_missing_folder_is_named_and_nothing_is_written(
        self, exporter: Exporter, imported: Imported, folder: Path
    ) -> None:
        with pytest.raises(NotFound, match="missing"):
            export_model(imported, exporter, folder / "missing" / "net", options=self.options)
        assert list(folder.iterdir()) == []

    def test_a_full_disk_is_a_typed_error_and_leaves_nothing(
        self, exporter: Exporter, imported: Imported, data: Dataset | None, folder: Path
    ) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # no file may grow beyond: writing fails half way
        try:
            with pytest.raises(SalverError):
                export_model(imported, exporter, folder / f"net{exporter.suffix}", data=data, options=self.options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(folder.iterdir()) == []

    def test_a_refusal_names_the_route_that_exists(self, exporter: Exporter, refused: Imported | None) -> None:
        if refused is None:
            pytest.skip("every model has a route into this format")
        with pytest.raises(Unimplemented, match=r"--to|salver "):
            exporter.route(refused)

    def test_a_precision_it_does_not_write_is_refused_with_those_it_does(self, exporter: Exporter) -> None:
        with pytest.raises(InvalidArgument, match="source"):
            find_exporter(self.exporter_name, "imaginary")
        assert exporter.precisions[0] == "source"
        assert self.exporter_name in EXPORTERS.names()
