# SPDX-License-Identifier: Apache-2.0
"""How well a toy-animals checkpoint drags: seeded one-point drags from landmarks, judged in the picture.

    python tools/toy_training/drags.py draggan_fast/assets/toy-animals.safetensors --drags 32 --set '{"lr": 0.02}'

The tracker's own distance flatters, since it may lose the point.  So the handle's surroundings are looked for in
the picture after the drag (normalised cross-correlation), and their way is measured along the way asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import toy_animals

from draggan_fast import DragSession, load
from draggan_fast.generator import normalize_second_moment

CHOSEN = ("nose", "eye_left", "eye_right", "mouth_left", "mouth_right", "ear_left", "ear_right", "chin")
WAY = 12.0  # pixels at 128
PATCH, REACH = 6, 22  # half sides, in pixels at 128: of what is looked for, and of where


def found(before: Tensor, after: Tensor, x: float, y: float) -> tuple[float, float]:
    """Where the surroundings of (x, y) in ``before`` are best found in ``after`` ([3, H, W] each), in pixels."""
    half, reach = round(PATCH * before.shape[-1] / 128), round(REACH * before.shape[-1] / 128)
    cx, cy, edge = round(x), round(y), half + reach
    patch = F.pad(before[None], (half,) * 4, mode="replicate")
    patch = patch[..., cy : cy + 2 * half + 1, cx : cx + 2 * half + 1]
    patch = patch - patch.mean(dim=(2, 3), keepdim=True)
    region = F.pad(after[None], (edge,) * 4, mode="replicate")
    region = region[..., cy : cy + 2 * edge + 1, cx : cx + 2 * edge + 1]
    window = torch.ones(3, 1, *patch.shape[-2:])
    mean = F.conv2d(region, window, groups=3) / window[0].numel()
    square = F.conv2d(region.square(), window, groups=3) / window[0].numel()
    energy = (square - mean.square()).sum(dim=1, keepdim=True).clamp_min(1e-4)
    best = int((F.conv2d(region, patch) / energy.sqrt()).argmax())
    side = 2 * reach + 1
    return cx + best % side - reach, cy + best // side - reach


def check(path: Path, drags: int, settings: dict[str, float], max_steps: int, sheet: Path | None) -> dict[str, float]:
    """Drags: how many arrive, in how many steps, and which share of the way the picture really went."""
    model = load(path, device="cpu")
    size = model.image_size[0]
    config = model.drag_config(**{"max_steps": max_steps, **settings})
    rows, tiles = [], []
    for k in range(drags):
        z = torch.from_numpy(np.random.RandomState(1000 + k).randn(1, model.config.z_dim)).float()
        landmarks = toy_animals.render(normalize_second_moment(z), 8).landmarks[0]
        name = CHOSEN[k % len(CHOSEN)]
        handle = (landmarks[toy_animals.LANDMARKS.index(name)] + 0.5) * (size / 8) - 0.5
        handle = handle.clamp(2, size - 3)
        angle = 2.399963 * k  # the golden angle: directions are spread evenly
        way = torch.tensor([np.cos(angle), np.sin(angle)]).float()
        target = (handle + way * WAY * size / 128).clamp(2, size - 3)
        session = DragSession(model, seed=1000 + k, truncation_psi=1.0, config=config)
        before = session.render()
        session.set_points([handle.tolist()], [target.tolist()])
        began = time.time()
        session.run()
        spent = time.time() - began
        after = session.render()
        pair = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in (before, after)]
        moved = torch.tensor(found(*pair, *handle.tolist())) - handle.round()
        asked = target - handle
        rows.append(
            (float(session.done), len(session.trajectory), float(moved @ asked / asked.square().sum()),
             float((session.w_plus - session.w0).norm()), spent / max(1, len(session.trajectory)))
        )  # fmt: skip
        for picture, point in zip(pair, (handle, target)):
            x, y = point.round().long().tolist()
            picture[:, y - 1 : y + 2, x - 1 : x + 2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
            tiles.append(picture)
    table = np.array(rows)
    if sheet is not None:
        from PIL import Image

        lines = [torch.cat(tiles[i : i + 8], dim=2) for i in range(0, len(tiles) - len(tiles) % 8, 8)]
        Image.fromarray((torch.cat(lines, dim=1) * 255).byte().permute(1, 2, 0).numpy()).save(sheet)
    return {
        "drags": drags,
        "arrived": int(table[:, 0].sum()),
        "steps_median": float(np.median(table[:, 1])),
        "way_mean": round(float(table[:, 2].mean()), 3),
        "way_median": round(float(np.median(table[:, 2])), 3),
        "latent_way": round(float(table[:, 3].mean()), 2),
        "ms_per_step": round(float(np.median(table[:, 4])) * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Seeded drags of a toy-animals checkpoint, judged in the picture.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--drags", type=int, default=32)
    parser.add_argument("--max-steps", type=int, default=80)
    parser.add_argument("--set", default="{}", help="JSON, drag settings that differ from the recommended ones")
    parser.add_argument("--sheet", type=Path, help="PNG to write: before (handle) and after (target), four a row")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = json.loads(args.set)
    print(json.dumps({**settings, **check(args.checkpoint, args.drags, settings, args.max_steps, args.sheet)}))


if __name__ == "__main__":
    main()
