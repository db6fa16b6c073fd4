"""What other hardware Salver passes through by name: how to get it, and what of it has been tried."""

from __future__ import annotations

from typing import Final

import msgspec

UNTESTED: Final = "untested here"
"""Said of what Salver's own tests cannot run: they have CPUs only. The name is passed on, and an unknown or absent one
is refused with those that are present; that is tested."""


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of hardware, or a way to use it.

    Args:
        name: as ``--provider`` takes it.
        what: in words.
        backends: those that know it.
        install: how its runtime comes onto a machine.
    """

    name: str
    what: str
    backends: tuple[str, ...]
    install: str


ACCELERATORS: Final = (
    Accelerator(
        name="cuda",
        what="NVIDIA GPUs",
        backends=("onnxruntime", "torch", "tensorflow", "jax"),
        install="pip install onnxruntime-gpu (in the place of onnxruntime), torch, tensorflow[and-cuda] or jax[cuda13]",
    ),
    Accelerator(
        name="tensorrt",
        what="NVIDIA GPUs through TensorRT",
        backends=("onnxruntime",),
        install="pip install onnxruntime-gpu tensorrt",
    ),
    Accelerator(
        name="openvino",
        what="Intel CPUs, GPUs and NPUs through ONNX Runtime",
        backends=("onnxruntime",),
        install="pip install onnxruntime-openvino (in the place of onnxruntime)",
    ),
    Accelerator(
        name="gpu",
        what="Intel GPUs through OpenVINO",
        backends=("openvino",),
        install="pip install 'salver[openvino]' and Intel's GPU driver",
    ),
    Accelerator(
        name="npu",
        what="Intel NPUs through OpenVINO",
        backends=("openvino",),
        install="pip install 'salver[openvino]' and Intel's NPU driver",
    ),
    Accelerator(
        name="rocm",
        what="AMD GPUs",
        backends=("onnxruntime", "jax"),
        install="AMD's build of onnxruntime (in the place of onnxruntime)",
    ),
    Accelerator(
        name="migraphx",
        what="AMD GPUs through MIGraphX",
        backends=("onnxruntime",),
        install="pip install onnxruntime-migraphx (in the place of onnxruntime)",
    ),
    Accelerator(
        name="coreml",
        what="Apple's Neural Engine and GPUs",
        backends=("onnxruntime",),
        install="onnxruntime for macOS has it",
    ),
    Accelerator(name="mps", what="Apple's GPUs", backends=("torch",), install="torch for macOS has it"),
    Accelerator(
        name="directml",
        what="any GPU under Windows",
        backends=("onnxruntime",),
        install="pip install onnxruntime-directml (in the place of onnxruntime)",
    ),
    Accelerator(name="tpu", what="Google's TPUs", backends=("jax",), install="pip install 'jax[tpu]'"),
)
