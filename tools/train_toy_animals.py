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
white      w is written anew, as its places along its main directions in units that grow with their deviations: the
           same pictures, but a drag stays where pictures are; nothing is trained
drag       the tracked features get channels that tell the places of a head apart; the pictures stay as they are
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toy_animals
from toy_training.losses import Adversary, Discriminator, supervised_loss
from toy_training.optimisers import Muon, adam, adam_groups
from toy_training.pool import HELD_OUT, MAP_SIZE, Pool
from toy_training.subspace import whitened
from toy_training.tracking import PairsOfAnimals, tracking_loss
from toy_training.tracking_channels import TrackingChannels, widened

from draggan_fast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from draggan_fast.generator import Generator, GeneratorConfig, normalize_second_moment, upsample

STAGES = ("mapping", "coarse", "full", "finish", "white", "drag")
SHARES = {"mapping": 0.03, "coarse": 0.18, "full": 0.22, "finish": 0.4, "drag": 0.17}  # of --minutes
SCENE_BATCH = 768  # latents a step whose scene is learned without a picture: the mapping network is slow
EMA_HALF_LIFE = {"coarse": 500.0, "full": 500.0, "finish": 2000.0}  # pictures
MAPS_WEIGHT, SCENE_WEIGHT = 0.1, 2.0  # of the auxiliary losses
TRACKED_BLOCK, TRACKING_CHANNELS = 4, 16
MUON_LR = 0.03
ADAM_LR = 4e-3
# Measured with ``draggan-fast eval drags --set``, see the model card.
DRAG = {
    "feature_block": TRACKED_BLOCK,
    "lr": 2.5e-2,
    "r1": 3,
    "r2": 12,
    "layers": 7,
    "space": "w",
    "stop_distance": 0.5,
}


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


class Trainer:
    """Networks, optimisers and the state of one run directory."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.run, self.size = args, Path(args.run), args.size
        self.run.mkdir(parents=True, exist_ok=True)
        cuda = torch.cuda.is_available()
        self.device = torch.device(("cuda" if cuda else "cpu") if args.device == "auto" else args.device)
        amx = self.device.type == "cpu" and torch.cpu._is_amx_tile_supported()
        # Without AMX the CPU's bf16 convolutions are slower than its float32 ones.
        self.low_precision = args.precision == "bfloat16" or (
            args.precision == "auto" and (amx or self.device.type == "cuda")
        )
        torch.manual_seed(args.seed)
        self.config = generator_config(self.size)
        described = toy_animals.describe(torch.zeros(1, toy_animals.LATENT_DIM)).shape[1]
        with torch.device(self.device):
            self.generator = Generator(self.config).to(memory_format=torch.channels_last)
            self.discriminator = Discriminator().to(memory_format=torch.channels_last)
            # Thrown away after training: they make w tell the scene, and features tell parts and places.
            self.heads = nn.ModuleDict({"scene": nn.Linear(self.config.w_dim, described)})
            self.heads.update(
                {f"block{b}": nn.Conv2d(self.config.channels[b], len(toy_animals.MAPS), 1) for b in (3, 4)}
            )
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.pool = Pool(Path(args.pool_dir or self.run / "pool"), self.size, args.pool, args.seed)
        self.record: dict[str, dict[str, float]] = {}  # stage → pictures and minutes done
        self.earlier: dict[str, dict[str, float]] = {}  # those of the run whose weights this one starts from
        self.stage = ""
        self.optimisers: list[torch.optim.Optimizer] = []
        self.pending: list[dict[str, Any]] = []  # optimiser states of a resumed stage
        self.draw = torch.Generator().manual_seed(args.seed + 1)
        self.order = torch.empty(0, dtype=torch.long)
        self.paint = self._paint if args.no_compile else torch.compile(self._paint, dynamic=False)
        self.loss = supervised_loss if args.no_compile else torch.compile(supervised_loss, dynamic=False)
        self.saved_at = time.time()
        if (self.run / "state.pt").exists():
            self._load()
        elif args.resume_from:
            found = load_checkpoint(args.resume_from)
            tensors, self.earlier = found.tensors, found.metadata.get("training", {}).get("stages", {})
            if found.config != self.config:
                self._adopt(Generator(found.config).to(self.device, memory_format=torch.channels_last))
            for network in (self.generator, self.ema):
                network.load_state_dict(tensors)

    # -- state

    def _state(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "channels": list(self.config.channels), "mapping_widths": list(self.config.mapping_widths),
            "stage": self.stage, "record": self.record, "earlier": self.earlier, "order": self.order,
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
        channels, widths = tuple(state["channels"]), tuple(state.get("mapping_widths", self.config.mapping_widths))
        config = replace(self.config, channels=channels, mapping_widths=widths, w_dim=widths[-1])
        if config != self.config:
            self._adopt(Generator(config).to(self.device, memory_format=torch.channels_last))
        for name in ("generator", "ema", "discriminator", "heads"):
            getattr(self, name).load_state_dict(state[name])
        self.record, self.earlier, self.stage = state["record"], state["earlier"], state["stage"]
        self.order = state["order"].cpu()
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
            parts = [self._parts(f"block{b}", outputs[b]) for b in (3, 4)]
        return image.float(), [p.float() for p in parts]

    def _parts(self, name: str, feature: Tensor) -> Tensor:
        """Part maps read from a block's feature, without the channels that the stage drag adds."""
        head = self.heads[name]
        return head(F.adaptive_avg_pool2d(feature[:, : head.in_channels], MAP_SIZE))

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
        resumed = self.stage == stage and self.pending
        self.optimisers = optimisers
        rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
        if resumed:
            for optimiser, state in zip(optimisers, self.pending):
                optimiser.load_state_dict(state)
        for optimiser, bases in zip(optimisers, rates):  # after loading: this run's rates count
            for group, base in zip(optimiser.param_groups, bases):
                group["base"] = base
        self.pending, self.stage = [], stage
        return self.record.setdefault(stage, {"pictures": 0, "minutes": 0.0})

    def _progress(self, done: dict[str, float], minutes: float) -> float:
        if self.args.pictures:
            return done["pictures"] / self.args.pictures
        return done["minutes"] / minutes

    def finished(self, stage: str, minutes: float) -> bool:
        """Whether an earlier run has already done all of this stage."""
        return stage in self.record and self._progress(self.record[stage], minutes) >= 1.0

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
        keep = 0.5 ** (pictures / EMA_HALF_LIFE[self.stage])
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1.0 - keep)

    def _optimisers(
        self, network: nn.Module, muon_lr: float, momentum: float, adam_lr: float, betas: tuple[float, float]
    ) -> list[torch.optim.Optimizer]:
        """Muon for a network's convolutions, Adam for all else (and for what makes few channels)."""
        matrices = [p for p in network.parameters() if p.ndim == 4 and p.shape[0] > 9 and p.shape[-1] > 1]
        rest = adam(adam_groups(network, {id(p) for p in matrices}), adam_lr, betas)
        return [Muon(matrices, muon_lr, momentum), rest]

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
        drawing = nn.ModuleList([self.generator, self.heads])
        if finish:
            own = self._optimisers(drawing, 0.35 * self.args.muon_lr, 0.8, 2.5e-3, (0.5, 0.99))
            others = self._optimisers(self.discriminator, 5e-3, 0.5, 4e-3, (0.0, 0.99))
        else:
            scale, others = (1.0 if stage == "coarse" else 0.7), []
            own = self._optimisers(drawing, scale * self.args.muon_lr, 0.9, scale * ADAM_LR, (0.9, 0.99))
        done = self._start(stage, own + others)
        adversary = None
        if finish:
            adversary = Adversary(self.discriminator, others, self.draw, self.low_precision)
        scenes = self._scenes(SCENE_BATCH)
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
                more, terms = adversary.step(leaf, data, gradient)
                gradient, seen = gradient + more, seen | terms
            maps = sum(F.l1_loss(p, data["maps"]) for p in parts)
            scene = self._scene_loss(*next(scenes))
            seen |= {"maps": maps, "scene": scene}
            for optimiser in own:
                optimiser.zero_grad()
            torch.autograd.backward([image, MAPS_WEIGHT * maps + SCENE_WEIGHT * scene], [gradient, None])
            for optimiser in own:
                optimiser.step()
            steps += 1
            if steps % 4 == 0:
                self._average(4 * batch)
            done["pictures"] += batch
            spent = time.time() - began
            done["minutes"] += spent / 60
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
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

    def whiten(self) -> None:
        """Stage white: the averaged network with another w. Doing it twice is doing it once."""
        if self.config.mapping_widths == generator_config(self.size).mapping_widths:
            self._adopt(whitened(self.ema, self.args.seed).to(memory_format=torch.channels_last))
            self.stage, self.optimisers, self.pending = "white", [], []  # those of another network
            self.milestone("white-end", self.size)

    def train_drag(self, minutes: float) -> None:
        """Stage drag: channels to track by added to the averaged network's features.

        Nothing that a picture is made of is trained here.
        """
        if self.config.channels == generator_config(self.size).channels:
            self._adopt(widened(self.ema, TRACKED_BLOCK, TRACKING_CHANNELS))
        extra = TrackingChannels(self.ema, TRACKED_BLOCK, TRACKING_CHANNELS).to(self.device)
        done = self._start("drag", [adam(adam_groups(extra, set()), 1e-2, (0.9, 0.99))])
        animals = PairsOfAnimals(self.size, self.draw, self.device)
        mapping, since, losses = self.ema.mapping, time.time(), []
        while (progress := self._progress(done, minutes)) < 1.0:
            began = time.time()
            self._schedule(progress, done, hold=0.4)
            pairs = animals.draw_pairs(self.args.batch // 2)
            ws = mapping.w_avg.lerp(mapping(pairs.latents), pairs.psi[:, :, None])
            loss = tracking_loss(extra(self.ema, ws), pairs.points, self.size)
            self.optimisers[0].zero_grad()
            loss.backward()
            self.optimisers[0].step()
            losses.append(loss.item())
            done["pictures"] += self.args.batch
            done["minutes"] += (time.time() - began) / 60
            if len(losses) == 25:
                self.log(stage="drag", pictures=done["pictures"], tracking=round(sum(losses) / 25, 5),
                         progress=round(progress, 4), wall=round(time.time() - since, 1))  # fmt: skip
                losses = []
            if time.time() - self.saved_at > self.args.save_minutes * 60:
                extra.write_into(self.ema)
                self.save()
        extra.write_into(self.ema)
        self.generator.load_state_dict(self.ema.state_dict())
        self.milestone("drag-end", self.size)

    def _adopt(self, network: Generator) -> None:
        """Goes on with a network of other widths."""
        described = self.heads["scene"].out_features
        if (
            network.config.w_dim != self.config.w_dim
        ):  # what it told of the scene is to be learned anew, if it is needed
            self.heads["scene"] = nn.Linear(network.config.w_dim, described).to(self.device)
        self.config, self.ema = network.config, network.requires_grad_(False)
        self.generator = copy.deepcopy(network).requires_grad_(True)

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
        stages = {
            k: {"pictures": int(v["pictures"]), "minutes": round(v["minutes"], 1)}
            for k, v in (self.earlier | self.record).items()
        }
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run directory: state.pt, log.jsonl, contact sheets, pool")
    parser.add_argument("--stage", default="all", choices=("all", "none", "render", *STAGES))
    parser.add_argument("--minutes", type=float, default=120.0, help="of the stage, or of all stages together")
    parser.add_argument("--pictures", type=int, default=0, help="length of the stage in pictures, not minutes")
    parser.add_argument("--size", type=int, default=128, choices=(128, 256))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pool", type=int, default=28000, help="pictures rendered to train on")
    parser.add_argument("--pool-dir", help="where they lie, if not in the run directory")
    parser.add_argument("--muon-lr", type=float, default=MUON_LR)
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
        elif trainer.pool.ready < HELD_OUT:
            raise SystemExit("There are no held-out pictures yet: run --stage render first (--pool 0 is enough).")
        elif stage == "white":
            trainer.whiten()
        elif stage != "none" and not trainer.finished(stage, minutes):
            if stage == "mapping":
                trainer.train_mapping(minutes)
            elif stage == "drag":
                trainer.train_drag(minutes)
            else:
                trainer.train_pictures(stage, minutes)
    if args.evaluate:
        print(json.dumps(trainer.evaluate(args.size, HELD_OUT)))
    if args.export:
        trainer.export(args.export)


if __name__ == "__main__":
    main()
