# SPDX-License-Identifier: Apache-2.0
"""Train the embedded model ``toy-animals``: a small StyleGAN2 that draws what ``tools/toy_animals.py`` renders.

    python tools/train_toy_animals.py --run runs/toy --minutes 120 --export toy-animals.safetensors

Every latent z has a known picture, so most of the training is supervised; an adversarial finish makes it crisp.

=========  =========================================================================================
render     a pool of pictures on disk, with latents, landmarks and small part maps
mapping    the mapping network learns to tell the scene's description (poses, sizes, landmarks) from z
coarse     supervised distillation at half the resolution, the upper block still idle
full       supervised distillation at the full resolution
finish     supervised losses, feature matching and a patch discriminator, weighed by gradient norms
=========  =========================================================================================

``--stage all`` runs them in turn and shares ``--minutes`` out; any one can be run alone.  Progress is kept in
the run directory (written atomically every few minutes) and a killed run goes on where it was;
``--resume-from FILE`` starts from published weights instead.  The length of a stage, and with it the decay of
its learning rate, follows the clock with ``--minutes`` and is repeatable with ``--pictures``.

A mapping network sees only the direction of z.  The renderer is therefore given the same normalised z: the
picture of z is ``render(normalize_second_moment(z))``, here and wherever the model is judged.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toy_animals  # noqa: E402 - it lives beside this script, which is not a package

from draggan_fast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from draggan_fast.generator import Generator, GeneratorConfig, normalize_second_moment, upsample  # noqa: E402

STAGES = ("mapping", "coarse", "full", "finish")
SHARES = {"mapping": 0.03, "coarse": 0.22, "full": 0.27, "finish": 0.48}  # of --minutes
HELD_OUT = 512  # pictures no training step ever sees
MAP_SIZE = 32
MAP_SCALE = 80.0  # maps are kept as int8: coverage 0…1, head-local coordinates about −1.5…1.5
EMA_HALF_LIFE = 3000.0  # pictures
MUON_LR = 0.03
ADAM_LR = 4e-3
DRAG = {"feature_block": 4, "lr": 2e-2, "r1": 3, "r2": 12}

# Landmark → (how strongly, how widely in 1/128 of the picture) its surroundings weigh more than the rest.
IMPORTANCE = {
    "eye_left": (1.0, 9.0), "eye_right": (1.0, 9.0), "nose": (1.0, 6.0), "lip_upper": (1.0, 5.0),
    "lip_lower": (1.0, 6.0), "mouth_left": (1.0, 5.0), "mouth_right": (1.0, 5.0), "brow_left_outer": (0.8, 4.0),
    "brow_left_inner": (0.8, 4.0), "brow_right_inner": (0.8, 4.0), "brow_right_outer": (0.8, 4.0),
    "ear_left": (0.5, 7.0), "ear_right": (0.5, 7.0), "head_top": (0.3, 6.0),
}  # fmt: skip
IMPORTANCE_GAIN = 2.5


def generator_config(size: int) -> GeneratorConfig:
    """The architecture for pictures of ``size`` pixels: 5.7 M parameters at 128."""
    channels = tuple(min(256, 4096 // (4 << block)) for block in range(int(size).bit_length() - 2))
    return GeneratorConfig(
        resolution=size,
        z_dim=toy_animals.LATENT_DIM,
        w_dim=512,
        channels=channels,
        mapping_widths=(512, 512, 512),
        use_noise=False,
    )


# ---------------------------------------------------------------------------------------------------- data


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
        fits = path.exists() and path.stat().st_size == int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.memmap(path, dtype=dtype, mode="r+" if fits else "w+", shape=shape)

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
                print(f"rendered {high} of {self.total}, {(high - first) / (time.time() - start):.1f} a second", flush=True)

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


# -------------------------------------------------------------------------------------------------- losses


def supervised_loss(image: Tensor, target: Tensor, weight: Tensor, full: float) -> Tensor:
    """``full`` × L1 + 0.5 gradient L1 + L1 on an average-pool pyramid down to 8², each weighted by importance."""
    error = image.float() - target
    loss = full * (weight * error.abs()).mean()
    loss = loss + 0.5 * (weight[..., 1:] * error.diff(dim=3).abs()).mean()
    loss = loss + 0.5 * (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
    while error.shape[-1] > 8:
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        loss = loss + 0.2 * (weight * error.abs()).mean()
    return loss


class Discriminator(nn.Module):
    """Patch discriminator, 0.43 M parameters: pictures → (logits [n, 1, s/8, s/8], features of every layer)."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((3, 32, 3, 1), (32, 64, 4, 2), (64, 128, 4, 2), (128, 128, 4, 2))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, k, s, padding=1) for a, b, k, s in plan)
        self.head = nn.Conv2d(128, 1, 3, padding=1)
        for layer in (*self.layers, self.head):
            nn.init.normal_(layer.weight, std=1.0 / math.sqrt(layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * math.sqrt(2.0)
            features.append(x)
        return self.head(x), features


def feature_matching(fake: list[Tensor], real: list[Tensor], weight: Tensor) -> Tensor:
    """Mean over the layers of the relative L1 distance between two pictures' features, weighted by importance."""
    terms = []
    for a, b in zip(fake, real):
        at = F.adaptive_avg_pool2d(weight, a.shape[-2:])
        b = b.detach()
        terms.append((at * (a - b).abs()).mean() / (at * b.abs()).mean())
    return torch.stack(terms).mean()


# ---------------------------------------------------------------------------------------------- optimisers


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, a, b] → about the nearest semi-orthogonal matrices: singular values are driven towards 1.

    The usual quintic Newton–Schulz iteration, carried out on the a×a Gram matrices: for a ≪ b (a convolution's
    9·C_in columns) that is a third of the work of iterating on the matrices themselves.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT, steps).mT
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = x @ x.mT
    one = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype).expand_as(gram)
    total = one
    for _ in range(steps):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * (gram @ gram)
        total = factor @ total
        gram = factor @ gram @ factor
    return total @ x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation, for weights that act as matrices (Jordan et al. 2024).

    Against Adam it needs far fewer steps here.  Weights of one shape are orthogonalised in one batch.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, columns), members in alike.items():
                steps = []
                for p in members:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1.0 - group["momentum"])
                    steps.append(p.grad.lerp(buffer, group["momentum"]).reshape(rows, columns))
                scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for p, update in zip(members, orthogonalised(torch.stack(steps))):
                    p.add_(update.reshape(p.shape), alpha=-scale)


def adam_groups(module: nn.Module, skip: set[int]) -> list[dict[str, Any]]:
    """Parameter groups by gain: weights are effective, so 1/√fan_in as learning rate is equalised learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in module.parameters():
        if id(p) not in skip:
            gain = 1.0 / math.sqrt(p[0].numel()) if p.ndim in (2, 4) else 1.0
            groups.setdefault(gain, []).append(p)
    return [{"params": members, "gain": gain} for gain, members in groups.items()]


def adam(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam([{**g, "lr": lr * g["gain"]} for g in groups], betas=betas, eps=1e-8, fused=True)


# ------------------------------------------------------------------------------------------------- trainer


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or nothing: whoever reads it never meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


class Trainer:
    """Networks, optimisers and the state of one run directory."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.run, self.size = args, Path(args.run), args.size
        self.run.mkdir(parents=True, exist_ok=True)
        cuda = torch.cuda.is_available()
        self.device = torch.device(("cuda" if cuda else "cpu") if args.device == "auto" else args.device)
        amx = self.device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - no public question
        # Without AMX the CPU's bf16 convolutions are slower than its float32 ones.
        self.low_precision = args.precision == "bfloat16" or (
            args.precision == "auto" and (amx or self.device.type == "cuda")
        )
        torch.manual_seed(args.seed)
        self.config = generator_config(self.size)
        with torch.device(self.device):
            self.generator = Generator(self.config).to(memory_format=torch.channels_last)
            self.discriminator = Discriminator().to(memory_format=torch.channels_last)
            width = len(toy_animals.describe(torch.zeros(1, toy_animals.LATENT_DIM, device="cpu"))[0])
            maps = len(toy_animals.MAPS)
            # Thrown away after training: they make w tell the scene, and features tell parts and places.
            self.heads = nn.ModuleDict({"scene": nn.Linear(512, width)})
            self.heads.update({f"block{b}": nn.Conv2d(self.config.channels[b], maps, 1) for b in (3, 4)})
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.pool = Pool(Path(args.pool_dir or self.run / "pool"), self.size, args.pool, args.seed)
        self.record: dict[str, dict[str, float]] = {}  # stage → pictures and minutes done
        self.stage, self.optimisers = "", []
        self.draw = torch.Generator().manual_seed(args.seed + 1)
        self.order = torch.empty(0, dtype=torch.long)
        self.paint = self._paint if args.no_compile else torch.compile(self._paint, dynamic=False)
        self.loss = supervised_loss if args.no_compile else torch.compile(supervised_loss, dynamic=False)
        self.saved_at = time.time()
        self.best: dict[str, float] = {}
        if (self.run / "state.pt").exists():
            self._load()
        elif args.resume_from:
            tensors = load_checkpoint(args.resume_from).tensors
            for network in (self.generator, self.ema):
                network.load_state_dict(tensors)

    # -- state

    def _state(self) -> dict[str, Any]:
        return {
            "size": self.size, "stage": self.stage, "record": self.record, "order": self.order,
            "generator": self.generator.state_dict(), "ema": self.ema.state_dict(),
            "discriminator": self.discriminator.state_dict(), "heads": self.heads.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "draw": self.draw.get_state(), "rng": torch.get_rng_state(),
        }  # fmt: skip

    def save(self) -> None:
        part = self.run / "state.pt.part"
        torch.save(self._state(), part)
        os.replace(part, self.run / "state.pt")
        self.saved_at = time.time()

    def _load(self) -> None:
        state = torch.load(self.run / "state.pt", map_location=self.device, weights_only=True)
        if state["size"] != self.size:
            raise SystemExit(f"{self.run} holds a run at {state['size']} pixels: give --size {state['size']}.")
        for name in ("generator", "ema", "discriminator", "heads"):
            getattr(self, name).load_state_dict(state[name])
        self.record, self.stage, self.order = state["record"], state["stage"], state["order"].cpu()
        self.pending = state["optimisers"]
        self.draw.set_state(state["draw"].cpu())
        torch.set_rng_state(state["rng"].cpu())

    def log(self, **entry: Any) -> None:
        line = json.dumps({"time": round(time.time(), 1), **entry})
        with open(self.run / "log.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    # -- forward

    def _paint(self, z: Tensor, blocks: int) -> tuple[Tensor, list[Tensor]]:
        """Latents → (picture of the first ``blocks`` blocks, part maps read from the features of blocks 3 and 4)."""
        generator = self.generator
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            ws = generator.mapping(z)
            outputs = generator.features(ws, blocks - 1).outputs
            image: Tensor | None = None
            for index, (block, x) in enumerate(zip(generator.synthesis.blocks, outputs)):
                rgb = block.to_rgb(x, ws[:, 2 * index + 1])
                image = rgb if image is None else upsample(image, self.config.resample_filter) + rgb
            assert image is not None
            parts = [self.heads[f"block{b}"](F.adaptive_avg_pool2d(outputs[b], MAP_SIZE)) for b in (3, 4)]
        return image.float(), [p.float() for p in parts]

    # -- bookkeeping of a stage

    def _rows(self, count: int) -> Tensor:
        """The next ``count`` training rows: every pass over what the pool holds by then is newly shuffled."""
        if len(self.order) < count:
            ready = self.pool.ready
            if ready < HELD_OUT + count:
                raise SystemExit("The pool of pictures is empty: run --stage render first.")
            self.order = torch.randperm(ready - HELD_OUT, generator=self.draw) + HELD_OUT
        rows, self.order = self.order[:count], self.order[count:]
        return rows

    def _start(self, stage: str, optimisers: list[torch.optim.Optimizer]) -> dict[str, float]:
        resumed = self.stage == stage and getattr(self, "pending", None)
        self.optimisers = optimisers
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["base"] = group["lr"]
        if resumed:
            for optimiser, state in zip(optimisers, self.pending):
                optimiser.load_state_dict(state)
        self.pending, self.stage = None, stage
        return self.record.setdefault(stage, {"pictures": 0, "minutes": 0.0})

    def _progress(self, done: dict[str, float], minutes: float) -> float:
        if self.args.pictures:
            return done["pictures"] / self.args.pictures
        return done["minutes"] / minutes

    def _schedule(self, progress: float, done: dict[str, float], hold: float, floor: float = 0.01) -> None:
        """Warm-up over 800 pictures, constant until ``hold``, then a cosine down to ``floor``."""
        fall = min(1.0, max(0.0, (progress - hold) / (1.0 - hold)))
        factor = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * fall))
        factor *= min(1.0, (done["pictures"] + 8) / 800)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor

    @torch.no_grad()
    def _average(self, pictures: int) -> None:
        keep = 0.5 ** (pictures / EMA_HALF_LIFE)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1.0 - keep)  # noqa: SLF001

    def _generator_optimisers(self, muon_lr: float, adam_lr: float, betas: tuple[float, float]) -> list:
        matrices = [p for p in self.generator.synthesis.parameters() if p.ndim == 4 and p.shape[0] > 3]
        if self.args.optimiser == "adam":
            matrices = []
        parts = nn.ModuleList([self.generator, self.heads])
        rest = adam(adam_groups(parts, {id(p) for p in matrices}), adam_lr, betas)
        return [Muon(matrices, muon_lr, momentum=0.9 if betas[0] > 0.6 else 0.8), rest] if matrices else [rest]

    def _scenes(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of latents and their scene descriptions; these need no picture, so they are cheap."""
        while True:
            z = normalize_second_moment(torch.randn(64 * batch, toy_animals.LATENT_DIM, generator=self.draw))
            yield from zip(z.split(batch), toy_animals.describe(z).split(batch))

    def _scene_loss(self, z: Tensor, truth: Tensor) -> Tensor:
        """How well w tells the scene."""
        told = self.heads["scene"](self.generator.mapping.w(z.to(self.device)))
        return F.smooth_l1_loss(told, truth.to(self.device), beta=0.3)

    # -- stages

    def train_mapping(self, minutes: float) -> None:
        """Regress the scene's description from w."""
        batch = 512
        scenes, parts = self._scenes(batch), nn.ModuleList([self.generator.mapping, self.heads["scene"]])
        done = self._start("mapping", [adam(adam_groups(parts, set()), 1e-2, (0.9, 0.99))])
        while (progress := self._progress(done, minutes)) < 1.0:
            began = time.time()
            self._schedule(progress, done, hold=0.3)
            loss = self._scene_loss(*next(scenes))
            self.optimisers[0].zero_grad()
            loss.backward()
            self.optimisers[0].step()
            done["pictures"] += batch
            done["minutes"] += (time.time() - began) / 60
            if done["pictures"] // batch % 500 == 0:
                self.log(stage="mapping", pictures=done["pictures"], loss=round(loss.item(), 5))
        self.ema.load_state_dict(self.generator.state_dict())
        self.log(stage="mapping", pictures=done["pictures"], loss=round(loss.item(), 5), minutes=done["minutes"])
        self.save()

    def train_pictures(self, stage: str, minutes: float) -> None:
        """Stages coarse, full and finish."""
        size = self.size // 2 if stage == "coarse" else self.size
        blocks = self.config.num_blocks - (stage == "coarse")
        batch, finish = self.args.batch, stage == "finish"
        hold = 0.3 if finish else 0.4
        if finish:
            optimisers = self._generator_optimisers(0.5 * self.args.muon_lr, 2.5e-3, (0.5, 0.99))
            optimisers.append(adam(adam_groups(self.discriminator, set()), 2e-3, (0.0, 0.99)))
        else:
            scale = 1.0 if stage == "coarse" else 0.7
            optimisers = self._generator_optimisers(scale * self.args.muon_lr, scale * ADAM_LR, (0.9, 0.99))
        done = self._start(stage, optimisers)
        adversary = Adversary(self) if finish else None
        scenes = self._scenes(128)
        steps, window, since = 0, [0.0, 0], time.time()
        sums: dict[str, float] = {}
        while (progress := self._progress(done, minutes)) < 1.0:
            began = time.time()
            self._schedule(progress, done, hold)
            data = self.pool.batch(self._rows(batch), size, self.device)
            image, parts = self.paint(data["latent"], blocks)
            leaf = image.detach().requires_grad_(True)
            loss = self.loss(leaf, data["target"], data["importance"], 0.7 if finish else 1.0)
            (gradient,) = torch.autograd.grad(loss, leaf)
            seen = {"loss": loss}
            if adversary is not None:
                gradient = gradient + adversary.step(leaf, data, gradient, seen)
            maps = sum(F.l1_loss(p, data["maps"]) for p in parts)
            scene = self._scene_loss(*next(scenes))
            seen |= {"maps": maps, "scene": scene}
            for optimiser in optimisers[: 2 if len(optimisers) > 1 + finish else 1]:
                optimiser.zero_grad()
            torch.autograd.backward([image, self.args.aux * (maps + scene)], [gradient, None])
            for optimiser in optimisers[: len(optimisers) - finish]:
                optimiser.step()
            steps += 1
            if steps % 4 == 0:
                self._average(4 * batch)
            done["pictures"] += batch
            spent = time.time() - began
            done["minutes"] += spent / 60
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            if steps > 2:  # the first ones compile
                window = [window[0] + spent, window[1] + batch]
            if steps % 100 == 0:
                means = {k: round(v / 100, 5) for k, v in sums.items()}
                self.log(stage=stage, pictures=done["pictures"], **means, rate=round(window[1] / window[0], 2),
                         progress=round(progress, 4), lr=round(self.optimisers[0].param_groups[0]["lr"], 6),
                         wall=round(time.time() - since, 1))  # fmt: skip
                sums, window = {}, [0.0, 0]
            if time.time() - self.saved_at > self.args.save_minutes * 60:
                self.milestone(f"{stage}-{int(done['pictures']):06d}", size)
        self.milestone(f"{stage}-end", size)

    # -- looking at it

    @torch.no_grad()
    def evaluate(self, size: int, count: int = 256) -> dict[str, float]:
        """PSNR (dB), L1 (of 255) and gradient energy (of the targets') of the averaged weights, held-out latents."""
        count = min(count, HELD_OUT)
        held, self.generator = self.generator, self.ema
        sums = np.zeros(4)
        try:
            for rows in torch.arange(count).split(32):
                data = self.pool.batch(rows, size, self.device)
                blocks = int(size).bit_length() - 2
                image = self._paint(data["latent"], blocks)[0].clamp(-1, 1).double()
                target = data["target"].double()
                error = image - target
                mse = (error / 2).square().mean(dim=(1, 2, 3))
                sums[0] += (-10 * mse.log10()).sum().item()
                sums[1] += error.abs().mean(dim=(1, 2, 3)).sum().item() * 127.5
                for slot, x in ((2, image), (3, target)):
                    sums[slot] += (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()).item()
        finally:
            self.generator = held
        return {
            "psnr": round(sums[0] / count, 3),
            "l1": round(sums[1] / count, 3),
            "gradient_energy": round(sums[2] / sums[3], 4),
        }

    @torch.no_grad()
    def sheet(self, path: Path, size: int, first: int = 0, columns: int = 8, pairs: int = 3) -> None:
        """A PNG: rows of G(z), each over the row of its targets."""
        from PIL import Image

        rows = []
        held, self.generator = self.generator, self.ema
        for pair in range(pairs):
            index = torch.arange(first + pair * columns, first + (pair + 1) * columns)
            data = self.pool.batch(index, size, self.device)
            image = self._paint(data["latent"], int(size).bit_length() - 2)[0]
            rows += [torch.cat(list(x), dim=2) for x in (image, data["target"])]
        self.generator = held
        pixels = ((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path)

    def milestone(self, name: str, size: int) -> None:
        self.save()
        self.log(event=name, size=size, **self.evaluate(size), record=self.record)
        self.sheet(self.run / f"{name}.png", size)

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """The averaged weights as float16 safetensors, w_avg measured over 16384 latents."""
        draw = torch.Generator().manual_seed(self.args.seed + 2)
        z = torch.randn(16384, toy_animals.LATENT_DIM, generator=draw).to(self.device)
        self.ema.mapping.w_avg.copy_(self.ema.mapping.w(z).mean(dim=0))
        quality = self.evaluate(self.size, HELD_OUT)
        stages = {k: {"pictures": int(v["pictures"]), "minutes": round(v["minutes"], 1)} for k, v in self.record.items()}
        metadata = {
            "name": "toy-animals",
            "licence": "Apache-2.0",
            "drag": {**DRAG, **json.loads(self.args.drag)},
            "training": {"seed": self.args.seed, "stages": stages, "held_out_latents": HELD_OUT, **quality},
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.ema.state_dict().items()}
        checkpoint = Checkpoint(self.config, tensors, family="draggan-fast", metadata=metadata)
        save_checkpoint(path, checkpoint, dtype=torch.float16)
        self.log(event="export", path=str(path), bytes=Path(path).stat().st_size, **metadata["training"])


class Adversary:
    """Feature matching and a patch discriminator on crops of ¾ of the picture's side.

    A crop costs the discriminator half of what the picture would; the crop's place changes every step, so that
    all of the picture is seen.
    """

    MATCHING, FOOLING = 1.3, 1.1  # gradient norms at the picture, relative to that of the supervised losses
    MEASURE_EVERY, R1_EVERY, R1_WEIGHT = 40, 16, 0.05

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.steps = trainer, 0
        self.weights = (0.0, 0.0)

    def step(self, leaf: Tensor, data: dict[str, Tensor], supervised: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """The gradient at the picture that these two terms add; trains the discriminator on the way."""
        trainer, network = self.trainer, self.trainer.discriminator
        side = trainer.size * 3 // 4
        y, x = torch.randint(0, trainer.size - side + 1, (2,), generator=trainer.draw).tolist()
        window = (..., slice(y, y + side), slice(x, x + side))
        fake, real = leaf[window], data["target"][window]
        with torch.autocast(leaf.device.type, torch.bfloat16, enabled=trainer.low_precision):
            fake_logits, fake_features = network(fake)
            real_logits, real_features = network(real)
            matching = feature_matching(fake_features, real_features, data["importance"][window])
            fooling = F.softplus(-fake_logits.float()).mean()
            telling = F.softplus(fake_logits.float()).mean() + F.softplus(-real_logits.float()).mean()
        if self.steps % self.MEASURE_EVERY == 0:
            norm = supervised.norm()
            terms = [torch.autograd.grad(t, leaf, retain_graph=True)[0] for t in (matching, fooling)]
            self.weights = tuple(
                float(share * norm / (g.norm() + 1e-12)) for share, g in zip((self.MATCHING, self.FOOLING), terms)
            )
            ramp = 1.0
            gradient = ramp * (self.weights[0] * terms[0] + self.weights[1] * terms[1])
        else:
            total = self.weights[0] * matching + self.weights[1] * fooling
            (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(telling, parameters)
        if self.steps % self.R1_EVERY == 0:
            sample = real[: max(1, len(real) // 2)].detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(network(sample)[0].sum(), sample, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3)).mean() * (0.5 * self.R1_WEIGHT * self.R1_EVERY)
            extra = torch.autograd.grad(penalty, parameters, allow_unused=True)
            gradients = [a if b is None else a + b for a, b in zip(gradients, extra)]
        for p, g in zip(parameters, gradients):
            p.grad = g
        trainer.optimisers[-1].step()
        self.steps += 1
        seen |= {"matching": matching.detach(), "fooling": fooling.detach(), "telling": telling.detach()}
        return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run directory: state.pt, log.jsonl, contact sheets, pool")
    parser.add_argument("--stage", default="all", choices=("all", "none", "render", *STAGES))
    parser.add_argument("--minutes", type=float, default=120.0, help="of the stage, or of all stages together")
    parser.add_argument("--pictures", type=int, default=0, help="length of the stage in pictures, not minutes")
    parser.add_argument("--size", type=int, default=128, choices=(64, 128, 256))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pool", type=int, default=28000, help="pictures rendered to train on")
    parser.add_argument("--pool-dir", help="where they lie, if not in the run directory")
    parser.add_argument("--optimiser", default="muon", choices=("muon", "adam"))
    parser.add_argument("--muon-lr", type=float, default=MUON_LR)
    parser.add_argument("--aux", type=float, default=0.1, help="weight of part maps and scene in the loss")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--no-compile", action="store_true", help="run eagerly (a compile takes a minute or two)")
    parser.add_argument("--resume-from", help="start from these weights if the run directory is new")
    parser.add_argument("--evaluate", action="store_true", help="print PSNR, L1 and gradient energy as JSON")
    parser.add_argument("--export", type=Path, help="write float16 safetensors when the stages are done")
    parser.add_argument("--drag", default="{}", help="JSON, drag settings for the exported metadata")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    trainer = Trainer(args)
    stages = ("render", *STAGES) if args.stage == "all" else (args.stage,)
    for stage in stages:
        minutes = args.minutes * (SHARES.get(stage, 0.0) if args.stage == "all" else 1.0)
        if stage == "render":
            trainer.pool.render(trainer.device, 16 if trainer.device.type == "cpu" else 64, not args.no_compile)
        elif stage == "mapping":
            trainer.train_mapping(minutes)
        elif stage != "none":
            trainer.train_pictures(stage, minutes)
    if args.evaluate:
        print(json.dumps(trainer.evaluate(args.size, HELD_OUT)))
    if args.export:
        trainer.export(args.export)


if __name__ == "__main__":
    main()
