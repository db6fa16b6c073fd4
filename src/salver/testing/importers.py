"""Conformance of the `importers` family: subclass `ImporterConformance` once per member."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from salver.backends import find_backend, open_session
from salver.builder.importers import IMPORTERS, Imported, Importer, ImportOptions
from salver.core.dataset import Dataset
from salver.core.errors import NotFound
from salver.core.model import digest_file
from salver.datasets import bind


class ImporterConformance:
    """What every importer keeps.

    A member's test sets `importer_name` and `suffix`, and has the fixtures ``source``, which is read with `options`,
    and ``data``, examples for it (10 at least).
    """

    importer_name: ClassVar[str]
    suffix: ClassVar[str]
    options: ClassVar[ImportOptions] = ImportOptions()

    @pytest.fixture
    def source(self, tmp_path: Path) -> Any:
        """What is imported."""
        raise NotImplementedError

    @pytest.fixture
    def data(self) -> Dataset:
        """Examples for it."""
        raise NotImplementedError

    @pytest.fixture
    def importer(self) -> Importer:
        """The member."""
        return IMPORTERS.get(self.importer_name)()

    @pytest.fixture
    def workdir(self, tmp_path: Path) -> Path:
        """Where it is imported to: an empty folder."""
        folder = tmp_path / "imported"
        folder.mkdir()
        return folder

    @pytest.fixture
    def imported(self, importer: Importer, source: Any, data: Dataset, workdir: Path) -> Imported:
        """The source, imported. A member whose import takes long gives one that is shared."""
        return importer.load(source, workdir, data, self.options)

    def test_it_recognizes_its_source_and_nothing_else(self, importer: Importer, source: Any) -> None:
        assert importer.recognizes(source)
        assert not importer.recognizes(Path("notes.txt"))
        assert not importer.recognizes(object())

    def test_the_certificate_covers_every_output_on_the_users_examples(self, imported: Imported) -> None:
        parity = imported.parity
        assert [o.name for o in parity.outputs] == list(imported.model.signature.output_names)
        assert (parity.inputs, parity.examples >= 10) == ("data", True)
        assert len(parity.batch_sizes) >= 2
        assert 1 in parity.batch_sizes
        assert all(o.max_rel <= parity.tolerance for o in parity.outputs if o.label_agreement == 1.0)

    def test_the_signature_is_what_the_runtime_says(self, imported: Imported) -> None:
        described = find_backend(imported.model.format).describe(imported.model.blobs[0])
        own = imported.model.signature
        assert [(s.name, s.datatype, s.shape) for s in (*own.inputs, *own.outputs)] == [
            (s.name, s.datatype, s.shape) for s in (*described.inputs, *described.outputs)
        ]

    def test_the_model_runs_on_the_data(self, imported: Imported, data: Dataset) -> None:
        bound = bind(data, imported.model.signature)
        with open_session(imported.model) as session:
            for batch in bound.batches(4):
                outputs = session.run(batch.inputs)
                assert all(len(outputs[name]) == batch.rows for name in imported.model.signature.output_names)
                break

    def test_lineage_names_source_and_import(self, imported: Imported) -> None:
        source, step = imported.model.lineage
        assert (source.action, step.action, step.name) == ("source", "import", self.importer_name)
        assert step.input_digest == source.output_digest
        assert step.output_digest == imported.model.blobs[0].digest == digest_file(imported.model.path)
        assert step.tools

    def test_the_same_source_gives_the_same_bytes(
        self, importer: Importer, source: Any, data: Dataset, imported: Imported, tmp_path: Path
    ) -> None:
        again = tmp_path / "again"
        again.mkdir()
        assert importer.load(source, again, data, self.options).model.digest == imported.model.digest

    def test_nothing_but_the_models_blobs_is_left(self, imported: Imported, workdir: Path) -> None:
        native = imported.native.blobs if imported.native else ()
        assert {p for p in workdir.rglob("*") if p.is_file()} == {b.path for b in (*imported.model.blobs, *native)}

    def test_a_missing_file_is_named(self, importer: Importer, tmp_path: Path) -> None:
        missing = tmp_path / f"missing{self.suffix}"
        with pytest.raises(NotFound, match="missing"):
            importer.load(missing, tmp_path, None, self.options)

    def test_without_data_the_inputs_are_synthetic(self, importer: Importer, source: Any, tmp_path: Path) -> None:
        folder = tmp_path / "synthetic"
        folder.mkdir()
        made = importer.load(source, folder, None, self.options)
        assert made.parity.inputs == "synthetic"
        np.testing.assert_array_less([o.max_rel for o in made.parity.outputs], made.parity.tolerance + 1e-9)
