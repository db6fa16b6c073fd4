"""Converters whose pins cannot live beside Salver's: each in a virtual environment of its own, made on demand."""

from __future__ import annotations

from salver.builder.toolchains.environment import InstalledToolchain, find, install, list_installed, remove
from salver.builder.toolchains.run import convert
from salver.builder.toolchains.table import TOOLCHAINS, Toolchain

__all__ = ["TOOLCHAINS", "InstalledToolchain", "Toolchain", "convert", "find", "install", "list_installed", "remove"]
