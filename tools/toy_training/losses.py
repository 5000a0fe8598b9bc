# SPDX-License-Identifier: Apache-2.0
"""What a picture is judged by: its target, and a patch discriminator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        truth, at = b.detach(), F.adaptive_avg_pool2d(weight, a.shape[-2:])
        terms.append((at * (a - truth).abs()).mean() / (at * truth.abs()).mean())
    return torch.stack(terms).mean()


class Adversary:
    """Feature matching and a patch discriminator on crops of ¾ of the picture's side.

    A crop costs the discriminator half of what the picture would; the crop's place changes every step, so that
    all of the picture is seen.
    """

    MATCHING, FOOLING = 1.3, 0.9  # gradient norms at the picture, relative to that of the supervised losses
    MEASURE_EVERY, R1_EVERY, R1_WEIGHT = 40, 16, 0.3

    def __init__(
        self,
        network: Discriminator,
        optimisers: list[torch.optim.Optimizer],
        draw: torch.Generator,
        low_precision: bool,
    ) -> None:
        self.network, self.optimisers = network, optimisers
        self.draw, self.low_precision = draw, low_precision
        self.steps, self.weights = 0, (0.0, 0.0)

    def step(self, leaf: Tensor, data: dict[str, Tensor], supervised: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the discriminator, and what the two terms add to the gradient at the picture ``leaf``.

        data: the batch's "target" and "importance".  supervised: the gradient of the other losses at ``leaf``.
        """
        side = leaf.shape[-1] * 3 // 4
        y, x = torch.randint(0, leaf.shape[-1] - side + 1, (2,), generator=self.draw).tolist()
        window = (..., slice(y, y + side), slice(x, x + side))
        fake, real = leaf[window], data["target"][window]
        with torch.autocast(leaf.device.type, torch.bfloat16, enabled=self.low_precision):
            fake_logits, fake_features = self.network(fake)
            real_logits, real_features = self.network(real)
            matching = feature_matching(fake_features, real_features, data["importance"][window])
            fooling = F.softplus(-fake_logits.float()).mean()
            telling = F.softplus(fake_logits.float()).mean() + F.softplus(-real_logits.float()).mean()
        if self.steps % self.MEASURE_EVERY == 0:
            size = supervised.norm()
            both = [torch.autograd.grad(t, leaf, retain_graph=True)[0] for t in (matching, fooling)]
            shares = (self.MATCHING, self.FOOLING)
            self.weights = tuple(float(s * size / (g.norm() + 1e-12)) for s, g in zip(shares, both))
            gradient = self.weights[0] * both[0] + self.weights[1] * both[1]
        else:
            total = self.weights[0] * matching + self.weights[1] * fooling
            (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(telling, parameters)
        if self.steps % self.R1_EVERY == 0:
            gradients = [a if b is None else a + b for a, b in zip(gradients, self._r1(real, parameters))]
        for p, g in zip(parameters, gradients):
            p.grad = g
        for optimiser in self.optimisers:
            optimiser.step()
        self.steps += 1
        return gradient, {"matching": matching, "fooling": fooling, "telling": telling}

    def _r1(self, real: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
        """The gradients of the lazy R1 penalty, taken on half of the batch."""
        sample = real[: max(1, len(real) // 2)].detach().requires_grad_(True)
        logits = self.network(sample)[0]
        (slope,) = torch.autograd.grad(logits.sum(), sample, create_graph=True)
        # Per patch: summed over a picture's many logits the penalty would flatten the discriminator.
        energy = slope.square().sum() / logits.numel()
        penalty = energy * (0.5 * self.R1_WEIGHT * self.R1_EVERY)
        return torch.autograd.grad(penalty, parameters, allow_unused=True)
