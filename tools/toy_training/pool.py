# SPDX-License-Identifier: Apache-2.0
"""Pictures to train on, rendered once and kept on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import toy_animals
from torch import Tensor

from draggan_fast.generator import normalize_second_moment

HELD_OUT = 512  # pictures no training step ever sees
MAP_SIZE = 32
MAP_SCALE = 80.0  # maps are kept as int8: coverage 0…1, head-local coordinates about −1.5…1.5

# Landmark → (how strongly, how widely in 1/128 of the picture) its surroundings weigh more than the rest.
IMPORTANCE = {
    "eye_left": (1.0, 9.0), "eye_right": (1.0, 9.0), "nose": (1.0, 6.0), "lip_upper": (1.0, 5.0),
    "lip_lower": (1.0, 6.0), "mouth_left": (1.0, 5.0), "mouth_right": (1.0, 5.0), "brow_left_outer": (0.8, 4.0),
    "brow_left_inner": (0.8, 4.0), "brow_right_inner": (0.8, 4.0), "brow_right_outer": (0.8, 4.0),
    "ear_left": (0.5, 7.0), "ear_right": (0.5, 7.0), "head_top": (1.0, 8.0),
}  # fmt: skip
IMPORTANCE_GAIN = 2.5


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or nothing: whoever reads it never meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


class Pool:
    """Rendered pictures on disk: uint8 pictures, int8 maps, latents, landmarks; the first HELD_OUT are held out.

    It is filled from the front and can be used while it is still being filled.
    """

    def __init__(self, folder: Path, size: int, count: int, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.total, self.seed = folder, size, count + HELD_OUT, seed
        n, maps = self.total, len(toy_animals.MAPS)
        self.images = self._array("images", np.uint8, (n, 3, size, size))
        self.maps = self._array("maps", np.int8, (n, maps, MAP_SIZE, MAP_SIZE))
        self.landmarks = self._array("landmarks", np.float32, (n, len(toy_animals.LANDMARKS), 2))
        draw = torch.Generator().manual_seed(seed)
        self.latents = normalize_second_moment(torch.randn(n, toy_animals.LATENT_DIM, generator=draw))

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / f"{name}-{self.size}.bin"
        if path.exists() and path.stat().st_size != int(np.prod(shape)) * np.dtype(dtype).itemsize:
            raise SystemExit(f"{path} was made for another number of pictures: give the same --pool, or another --run.")
        return np.memmap(path, dtype=dtype, mode="r+" if path.exists() else "w+", shape=shape)

    @property
    def ready(self) -> int:
        """How many pictures, held-out ones included, are there so far."""
        path = self.folder / f"ready-{self.size}.txt"
        return int(path.read_text()) if path.exists() else 0

    @torch.no_grad()
    def render(self, device: torch.device, batch: int, compiled: bool) -> None:
        """Render what is missing."""

        def draw(latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            scene = toy_animals.render(latent, self.size, maps=True)
            pixels = ((scene.image + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
            maps = F.adaptive_avg_pool2d(scene.maps, MAP_SIZE) * MAP_SCALE
            return pixels, maps.round().clamp(-127, 127).to(torch.int8), scene.landmarks

        if compiled:
            draw = torch.compile(draw, dynamic=False)
        start, first = time.time(), self.ready
        for low in range(first, self.total, batch):
            rows = np.arange(low, low + batch) % self.total  # a last batch that wraps keeps one compiled shape
            picture, maps, landmarks = draw(self.latents[torch.from_numpy(rows)].to(device))
            self.images[rows], self.maps[rows] = picture.cpu().numpy(), maps.cpu().numpy()
            self.landmarks[rows] = landmarks.cpu().numpy()
            high = min(low + batch, self.total)
            if high == self.total or (low // batch) % 16 == 15:
                write_atomically(self.folder / f"ready-{self.size}.txt", str(high).encode())
            if (low // batch) % 64 == 63:
                rate = (high - first) / (time.time() - start)
                print(f"rendered {high} of {self.total}, {rate:.1f} a second", flush=True)

    def batch(self, rows: Tensor, size: int, device: torch.device) -> dict[str, Tensor]:
        """Latents, pictures in −1…1 and importance [n, 1, size, size] at the asked size, and maps."""
        index = rows.numpy()
        landmarks = torch.from_numpy(self.landmarks[index]).to(device)
        target = torch.from_numpy(self.images[index]).to(device).float() / 127.5 - 1.0
        if size < self.size:
            target = F.adaptive_avg_pool2d(target, size)
        return {
            "latent": self.latents[rows].to(device),
            "target": target,
            "importance": importance((landmarks + 0.5) * (size / self.size) - 0.5, size),
            "maps": torch.from_numpy(self.maps[index]).to(device).float() / MAP_SCALE,
        }


def importance(landmarks: Tensor, size: int) -> Tensor:
    """Landmarks [n, 21, 2] in pixels → loss weights [n, 1, size, size], 1 … 1 + IMPORTANCE_GAIN."""
    chosen = [toy_animals.LANDMARKS.index(name) for name in IMPORTANCE]
    strength, width = landmarks.new_tensor(list(IMPORTANCE.values())).T
    points = landmarks[:, chosen]
    ticks = torch.arange(size, device=landmarks.device, dtype=landmarks.dtype)
    spread = (width * (size / 128.0))[None, :, None]
    gx = torch.exp(-0.5 * ((ticks - points[..., :1]) / spread) ** 2)
    gy = torch.exp(-0.5 * ((ticks - points[..., 1:]) / spread) ** 2) * strength[None, :, None]
    return 1.0 + IMPORTANCE_GAIN * torch.einsum("nky,nkx->nyx", gy, gx).clamp(max=1.0).unsqueeze(1)
