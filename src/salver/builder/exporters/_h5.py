"""Keras' older format, one HDF5 file."""

from __future__ import annotations

from salver.builder.exporters._keras import KerasExporter


class H5Exporter(KerasExporter):
    """Writes HDF5 files as Keras 2 and 3 read them, for tools that know no ``.keras``."""

    name = "h5"
    suffix = ".h5"
