"""Where the landmarks of a toy animal really are: a small detector, independent of the generator and of the tracker.

It was trained by ``tools/train_landmarks.py`` on rendered pictures only, so it can judge a drag of the embedded model:
the drag's own tracker says where it believes the point to be, and flatters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

import draggan_fast
from draggan_fast import DragError

SIDE = 128  # pixels of the pictures that the network sees
CELLS = 32  # heat maps are CELLS × CELLS
WEIGHTS = Path(draggan_fast.__file__).parent / "assets" / "toy-landmarks.safetensors"


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm0, self.conv0 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv0(F.relu(self.norm0(x)))
        return x + self.conv1(F.relu(self.norm1(y)))


class LandmarkNetwork(nn.Module):
    """Pictures → heat maps: an hourglass from 32² down to 4² and back, with a shortcut at each size.

    count: number of landmarks.  widths: channels at 64², 32², 16², 8², 4².
    """

    def __init__(self, count: int, widths: Sequence[int] = (24, 48, 72, 96, 80)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(self.widths[:-1], self.widths[1:])
        )
        self.going_down = nn.ModuleList(_Residual(c) for c in self.widths[1:])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(self.widths[1:-1], self.widths[2:]))
        self.going_up = nn.ModuleList(_Residual(c) for c in self.widths[1:-1])
        self.last = _norm(self.widths[1])
        self.heat = nn.Conv2d(self.widths[1], count, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, 128, 128] in [-1, 1] → logits [B, count, 32, 32] float32."""
        x = F.relu(self.stem(image))
        shortcuts = []
        for down, block in zip(self.down, self.going_down):
            x = block(down(x))
            shortcuts.append(x)
        for level in range(len(self.up) - 1, -1, -1):
            lifted = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest")
            x = self.going_up[level](shortcuts[level] + lifted)
        return self.heat(F.relu(self.last(x))).float()


def expected_points(logits: Tensor) -> Tensor:
    """Soft-argmax: logits [B, K, 32, 32] → the mean position under their softmax, [B, K, 2], (x, y) of 128 pixels."""
    weights = logits.flatten(2).softmax(dim=2).unflatten(2, (CELLS, CELLS))
    centres = (torch.arange(CELLS, device=logits.device, dtype=logits.dtype) + 0.5) * (SIDE / CELLS) - 0.5
    return torch.stack([(weights.sum(dim=2) * centres).sum(dim=2), (weights.sum(dim=3) * centres).sum(dim=2)], dim=2)


@dataclass(frozen=True)
class LandmarkDetector:
    """A trained network, the names of its landmarks in the order of its answers, and what tells it from others."""

    network: LandmarkNetwork
    names: tuple[str, ...]
    content_hash: str

    def index(self, name: str) -> int:
        return self.names.index(name)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H, W, 3] each, square and of one size → [pictures, landmarks, 2] float32, (x, y) in their pixels.

        Larger pictures than 128×128 are averaged down first. Raises DragError for pictures that do not fit.
        """
        side = pictures[0].shape[0] if len(pictures) else SIDE
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.shape != (side, side, 3) or side < SIDE:
                raise DragError(
                    f"The landmark detector reads square uint8 pictures of at least {SIDE}×{SIDE} pixels, "
                    f"not {picture.dtype} {list(picture.shape)}."
                )
        found = []
        for start in range(0, len(pictures), 16):
            batch = torch.from_numpy(np.stack(pictures[start : start + 16])).permute(0, 3, 1, 2).float() / 127.5 - 1
            if side != SIDE:
                batch = F.interpolate(batch, size=(SIDE, SIDE), mode="bilinear", antialias=True)
            found.append((expected_points(self.network(batch)) + 0.5) * (side / SIDE) - 0.5)
        return torch.cat(found).numpy() if found else np.zeros((0, len(self.names), 2), np.float32)


@lru_cache(maxsize=1)
def load_detector(path: Path = WEIGHTS) -> LandmarkDetector:
    """The detector that comes with the package, on the CPU in float32. Raises DragError if its file cannot be used."""
    try:
        data = path.read_bytes()
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["landmarks"])
        names = tuple(metadata["names"])
        network = LandmarkNetwork(len(names), metadata["widths"])
        network.load_state_dict({name: tensor.float() for name, tensor in load_tensors(data).items()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DragError(f"The landmark detector {path.name} cannot be used: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    return LandmarkDetector(network.eval().requires_grad_(False), names, digest)
