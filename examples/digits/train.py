"""Train the digit classifier of this example, and export it to ONNX.

This script is what made `digits.onnx`, `val.npz` and `labels.txt` beside it: a small, real
convolutional network, to have something honest to optimize, certify, seal and serve. Nothing in
Salver imports it, and the example runs without it; run it to make the files again or to train a
variant. It needs PyTorch, ONNX and NumPy (`pip install torch onnx numpy`) and takes a few minutes
on two CPU cores.

    python train.py --data mnist_dev.npz --out digits.onnx

`--data` is an npz file with `x_train` and `x_test`, uint8 [N, 28, 28], and `y_train` and `y_test`,
the digits 0..9. Only the training part is learned from, and nothing is chosen by the test part:
the number of epochs is fixed, and the test images are looked at once, at the end. They are then
written as the validation set (`--val`), for the comparisons that Salver makes.

The seed fixes the result for one version of PyTorch, one kind of CPU and one number of threads;
elsewhere the last digits of the weights differ, and the accuracy by a tenth of a percent or so.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

MAX_TURN_DEGREES = 12.0
MAX_SCALE_CHANGE = 0.10
MAX_SHEAR = 0.10
MAX_SHIFT_PIXELS = 2.0
IMAGE_PIXELS = 28


class DigitNet(nn.Module):
    """float32 [batch, 1, 28, 28] in 0..1 -> logits, float32 [batch, 10]. 458,000 parameters.

    The batch normalizations are there for training; `fold` takes them into the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * 7 * 7, 128)
        self.output = nn.Linear(128, 10)
        self.drop = nn.Dropout(0.4)

    def fold(self) -> DigitNet:
        """Merge each normalization into its convolution; for evaluation mode, and for good."""
        for layer in "123":
            conv = cast(nn.Conv2d, self.get_submodule(f"conv{layer}"))
            norm = cast(nn.BatchNorm2d, self.get_submodule(f"norm{layer}"))
            self.set_submodule(f"conv{layer}", fuse_conv_bn_eval(conv, norm))
            self.set_submodule(f"norm{layer}", nn.Identity())
        return self

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(image)))
        x = functional.relu(self.norm2(self.conv2(x)))
        x = functional.max_pool2d(x, 2)
        x = functional.relu(self.norm3(self.conv3(x)))
        x = functional.max_pool2d(x, 2)
        x = self.drop(torch.flatten(x, 1))
        x = self.drop(functional.relu(self.hidden(x)))
        logits: Tensor = self.output(x)
        return logits


def warp(images: Tensor) -> Tensor:
    """Turn, scale, shear and shift every image [N, 1, 28, 28] a little, each one differently."""
    count = len(images)

    def between(limit: float, shape: tuple[int, ...] = (count,)) -> Tensor:
        return (torch.rand(shape) * 2 - 1) * limit

    turn = between(math.radians(MAX_TURN_DEGREES))
    scale = 1 + between(MAX_SCALE_CHANGE)
    rotate = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(count, 2, 2)
    shear = torch.eye(2).repeat(count, 1, 1)
    shear[:, 0, 1] = between(MAX_SHEAR)
    shift = between(2 * MAX_SHIFT_PIXELS / IMAGE_PIXELS, (count, 2, 1))
    affine = torch.cat([rotate @ shear / scale.view(-1, 1, 1), shift], dim=2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(net: DigitNet, images: Tensor, labels: Tensor, *, epochs: int, batch: int) -> DigitNet:
    """Train `net` in place; return the running average of its weights, ready for use."""
    steps = epochs * math.ceil(len(images) / batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    for epoch in range(epochs):
        net.train()
        started, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(images)).split(batch):
            loss = functional.cross_entropy(net(warp(images[rows])), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
            total += loss.item() * len(rows)
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1:2d}/{epochs}  loss {total / len(images):.4f}  {seconds:.1f} s",
            flush=True,
        )
    return cast(DigitNet, average.module.eval()).fold()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Part of the images that `net` names rightly, 0..1."""
    predicted = torch.cat([net(part).argmax(1) for part in images.split(500)])
    return (predicted == labels).float().mean().item()


def export(net: nn.Module, path: Path) -> None:
    """Write `net` as ONNX: input `image`, output `logits`, free batch, the weights inside."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, IMAGE_PIXELS, IMAGE_PIXELS),),
        str(path),
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,  # its graph is the smaller one: twelve nodes, named dimensions, no metadata
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] in 0..1."""
    return images[:, None].astype(np.float32) / np.float32(255)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="npz: x_train, y_train, x_test, y_test")
    add("--out", type=Path, default=Path("digits.onnx"), help="the ONNX file to write")
    add("--val", type=Path, help="also write the test images and labels here (npz)")
    add("--labels", type=Path, help="also write the names of the classes here")
    add("--epochs", type=int, default=40)
    add("--batch", type=int, default=64)
    add("--seed", type=int, default=7)
    add("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    with np.load(args.data) as data:
        x_train, y_train = pixels(data["x_train"]), data["y_train"].astype(np.int64)
        x_test, y_test = pixels(data["x_test"]), data["y_test"].astype(np.int64)

    net = train(
        DigitNet(),
        torch.from_numpy(x_train),
        torch.from_numpy(y_train),
        epochs=args.epochs,
        batch=args.batch,
    )
    export(net, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    if args.val:
        np.savez_compressed(args.val, image=x_test, label=y_test)
    if args.labels:
        args.labels.write_text("".join(f"{digit}\n" for digit in range(10)))
    score = accuracy(net, torch.from_numpy(x_test), torch.from_numpy(y_test))
    print(f"accuracy on the {len(y_test)} test images: {score:.2%}")


if __name__ == "__main__":
    main()
