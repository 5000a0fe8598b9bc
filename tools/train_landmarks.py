# SPDX-License-Identifier: Apache-2.0
"""Train the landmark detector that judges drags of ``toy-animals``: on rendered pictures, never on generated ones.

    python tools/train_landmarks.py --run runs/landmarks --export draggan_fast/assets/toy-landmarks.safetensors

In about half an hour on two CPU cores it renders a pool of pictures (once), trains ``bench/landmarks.py``'s network on
them with ``toy_training/augment.py``'s changes, and prints the errors: in pixels of 128, on the pool's held-out renders
and on the embedded generator's pictures of the same latents (its placement error is in there).  A killed run goes on
where its last checkpoint was; every batch is drawn from (seed, step) alone, so it goes on as it would have.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toy_animals
from draggan_fast.bench.landmarks import CELLS, SIDE, LandmarkDetector, LandmarkNetwork, expected_points
from toy_training.augment import degrade, move, target_heat, visible
from toy_training.pool import HELD_OUT, Pool, write_atomically

import draggan_fast as dg

BATCH = 16
LR, WARM_UP = 2.5e-3, 200
EMA_DECAY = 0.995
SAVE_STEPS = 500
HEAT_WEIGHT = 0.25  # of the heat maps' cross-entropy beside the points' own error, which is in pixels


def loss_of(network: LandmarkNetwork, image: Tensor, points: Tensor, low_precision: bool) -> Tensor:
    """Smooth L1 of the points plus the cross-entropy of the heat maps, over the landmarks inside the picture."""
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        logits = network(image.contiguous(memory_format=torch.channels_last))
    seen = visible(points, SIDE)
    error = F.smooth_l1_loss(expected_points(logits), points, beta=0.5, reduction="none").sum(dim=2)
    heat = target_heat(points, SIDE, CELLS).flatten(2)
    entropy = -(heat * logits.flatten(2).log_softmax(dim=2)).sum(dim=2)
    return (error + HEAT_WEIGHT * entropy)[seen].mean()


def train(args: argparse.Namespace, pool: Pool) -> LandmarkNetwork:
    """The averaged network after ``args.steps`` steps."""
    torch.manual_seed(args.seed)
    network = LandmarkNetwork(len(toy_animals.LANDMARKS)).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-3, betas=(0.9, 0.98))
    low_precision = torch.cpu._is_amx_tile_supported()
    first, state = 0, args.run / "state.pt"
    if state.exists():
        found = torch.load(state, weights_only=True)
        network.load_state_dict(found["network"])
        average.load_state_dict(found["average"])
        optimiser.load_state_dict(found["optimiser"])
        first = found["step"]
    began, total = time.time(), 0.0
    for step in range(first, args.steps):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.randint(HELD_OUT, pool.total, (BATCH,), generator=draw).numpy()
        image = torch.from_numpy(pool.images[rows]).float() / 127.5 - 1.0
        image, points = move(image, torch.from_numpy(pool.landmarks[rows]), draw)
        loss = loss_of(network, degrade(image, draw), points, low_precision)
        progress = step / args.steps
        rate = LR * min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        # A young average would be mostly the random start.
        torch._foreach_lerp_(
            list(average.parameters()), list(network.parameters()), 1 - min(EMA_DECAY, step / (step + 10))
        )
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}, loss {total / 100:.4f}, {time.time() - began:.0f} s", flush=True)
            total = 0.0
        if (step + 1) % SAVE_STEPS == 0 or step + 1 == args.steps:
            held = errors(average, pool, 128)
            print(f"step {step + 1}, held-out error {held.mean():.3f} px", flush=True)
            part = state.with_suffix(".part")
            entry = {"network": network.state_dict(), "average": average.state_dict()}
            torch.save({**entry, "optimiser": optimiser.state_dict(), "step": step + 1}, part)
            os.replace(part, state)
    return average


def detector_of(network: LandmarkNetwork) -> LandmarkDetector:
    return LandmarkDetector(network.eval(), toy_animals.LANDMARKS, "")


def errors(network: LandmarkNetwork, pool: Pool, count: int) -> np.ndarray:
    """[landmarks]: mean distance in pixels on the first ``count`` held-out renders, unchanged ones."""
    pictures = [p.transpose(1, 2, 0) for p in pool.images[:count]]
    return np.linalg.norm(detector_of(network)(pictures) - pool.landmarks[:count], axis=2).mean(axis=0)


@torch.no_grad()
def generator_errors(network: LandmarkNetwork, pool: Pool, count: int) -> np.ndarray:
    """[landmarks]: the same on the embedded generator's pictures of the latents (untruncated)."""
    model = dg.load("toy-animals", device="cpu")
    pictures = []
    for z in pool.latents[:count].split(8):
        image = (model.generator(z) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        pictures += [p.permute(1, 2, 0).numpy() for p in image]
    return np.linalg.norm(detector_of(network)(pictures) - pool.landmarks[:count], axis=2).mean(axis=0)


def export(network: LandmarkNetwork, pool: Pool, path: Path, steps: int, seed: int) -> None:
    """Float16 safetensors; names, widths and the float16 network's own errors are in the metadata."""
    halved = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: tensor.float() for name, tensor in halved.items()})
    names = toy_animals.LANDMARKS

    def told(errors: np.ndarray) -> dict[str, float]:
        return {n: round(float(e), 3) for n, e in zip(("mean", *names), (errors.mean(), *errors))}

    metadata = {
        "name": "toy-landmarks",
        "licence": "Apache-2.0",
        "names": names,
        "widths": network.widths,
        "training": {"seed": seed, "steps": steps, "batch": BATCH, "pictures": pool.total - HELD_OUT},
        "error_px": told(errors(network, pool, HELD_OUT)),
        "generator_error_px": told(generator_errors(network, pool, HELD_OUT)),
    }
    write_atomically(path, save(halved, {"landmarks": json.dumps(metadata)}))
    print(json.dumps({"path": str(path), "bytes": path.stat().st_size, **metadata}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory: state.pt and the pool of pictures")
    parser.add_argument("--steps", type=int, default=6000, help=f"of {BATCH} pictures each")
    parser.add_argument("--pool", type=int, default=12000, help="pictures rendered to train on")
    parser.add_argument("--seed", type=int, default=2027)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--export", type=Path, help="write the averaged weights as float16 safetensors")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    pool = Pool(args.run / "pool", SIDE, args.pool, args.seed)
    pool.render(torch.device("cpu"), 16, compiled=True)
    network = train(args, pool)
    if args.export:
        export(network, pool, args.export, args.steps, args.seed)


if __name__ == "__main__":
    main()
