"""The toolchains there are, and what each needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

SCRIPTS: Final = Path(__file__).parent / "scripts"


class Toolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A converter in an environment of its own.

    Args:
        name: what `salver toolchain install` takes.
        summary: what it converts.
        requirements: what pip installs, pinned: an environment made today is that of tomorrow.
        script: run by the environment's Python; has ``convert(source, output)``, which gives library -> version.
    """

    name: str
    summary: str
    requirements: tuple[str, ...]
    script: Path


TOOLCHAINS: Final = {
    toolchain.name: toolchain
    for toolchain in (
        Toolchain(
            name="onnx2tf",
            summary="ONNX -> TensorFlow Lite (https://github.com/PINTO0309/onnx2tf)",
            requirements=("onnx2tf==1.29.24",),  # the last release for Python 3.11
            script=SCRIPTS / "run_onnx2tf.py",
        ),
        Toolchain(
            name="litert-torch",
            summary="PyTorch ExportedProgram -> TensorFlow Lite (https://github.com/google-ai-edge/litert-torch)",
            requirements=("litert-torch~=0.10.0", "torch==2.13.0"),
            script=SCRIPTS / "run_litert_torch.py",
        ),
    )
}
