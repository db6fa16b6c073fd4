"""Networks in PyTorch for the matrix of formats."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

CNN_INPUT: Final = "image:float32[batch,1,8,8]"
TEXT_INPUT: Final = "ids:int64[batch,length]; mask:int64[batch,length]"
SERIES_INPUT: Final = "x:float32[batch,length,8]"
VOICE_INPUT: Final = "x:float32[batch,576]; state:float32[2,batch,128]"


def make_cnn() -> nn.Module:
    """Convolution, normalization, pooling; ``image`` [batch, 1, 8, 8] -> [batch, 10]."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    ).eval()


class Transformer(nn.Module):
    """Two layers over a sequence of any length up to 64, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.places = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``ids``, ``mask`` [batch, length] -> [batch, 5]."""
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        hidden = self.body(hidden) * mask[..., None]
        return self.head(hidden.sum(1) / (mask.sum(1, keepdim=True) + 1))


def make_transformer() -> nn.Module:
    """A `Transformer` with weights from a seed."""
    torch.manual_seed(0)
    return Transformer().eval()


class Branching(nn.Module):
    """A recurrent network that goes one way or the other as its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [batch, length, 8] -> [batch, 3]."""
        hidden, _ = self.recurrent(x)
        scores = self.head(hidden[:, -1])
        if x.mean() > 0:
            scores = scores * 2
        else:
            scores = scores - 1
        return scores


def make_branching() -> nn.Module:
    """A `Branching` with weights from a seed."""
    torch.manual_seed(0)
    return Branching().eval()


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self = nn.ModuleDict({part: nn.Linear(width, width) for part in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = [
            self.self[part](x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        scores = parts[0] @ parts[1].transpose(2, 3) / (width // self.heads) ** 0.5 + bias
        mixed = (scores.softmax(-1) @ parts[2]).transpose(1, 2).reshape(batch, length, width)
        return self.output["LayerNorm"](x + self.output["dense"](mixed))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, wide)})
        self.output = nn.ModuleDict({"dense": nn.Linear(wide, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, bias)
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2 with the parameter names of its safetensors: mean over the tokens, of length one."""

    def __init__(self, width: int = 384, heads: int = 12, wide: int = 1536, layers: int = 6) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(30522, width),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, 1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([_Layer(width, heads, wide) for _ in range(layers)])})
        # In the file, though a sentence encoder does not use it.
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``ids``, ``mask`` [batch, length] -> [batch, 384]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](places)
        x = self.embeddings["LayerNorm"](x + self.embeddings["token_type_embeddings"].weight[0])
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e9
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        weights = mask[..., None].to(x.dtype)
        return nn.functional.normalize((x * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def make_minilm() -> nn.Module:
    """`MiniLm`, to be filled from its safetensors."""
    return MiniLm().eval()


class SileroVad(nn.Module):
    """The network of silero-vad 6 at 16 kHz, with the parameter names of its safetensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` [batch, 576], ``state`` [2, batch, 128] -> score [batch, 1], state."""
        x = self.stft_conv(nn.functional.pad(x, (0, 64), "reflect").unsqueeze(1))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
        return self.final_conv(h.unsqueeze(-1).relu()).sigmoid().squeeze(1), torch.stack([h, c])


def make_silero() -> nn.Module:
    """`SileroVad`, to be filled from its safetensors."""
    return SileroVad().eval()


# The names of the TorchScript's weights in the safetensors.
_SILERO_NAMES: Final = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{f"encoder.{i}.reparam_conv.{w}": f"conv{i + 1}.{w}" for i in range(4) for w in ("weight", "bias")},
    **{f"decoder.rnn.{w}_{i}": f"lstm_cell.{w}_{i}" for w in ("weight", "bias") for i in ("ih", "hh")},
    **{f"decoder.decoder.2.{w}": f"final_conv.{w}" for w in ("weight", "bias")},
}


def silero_weights(network: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    """The weights of silero-vad's TorchScript under the names of its safetensors."""
    return {_SILERO_NAMES[name]: tensor.clone() for name, tensor in network.state_dict().items()}
