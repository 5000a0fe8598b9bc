"""The baseline: one iteration of the published DragGAN program, with the costs it really has.

Written from the semantics recorded in ``tests/golden/README.md`` alone, and held to the same recorded trajectories
(``tests/test_published_baseline.py``). What makes it slow is kept on purpose, and nothing is made slower:

- the whole synthesis runs at every step, up to the full resolution and to RGB, though only its features are used;
- weights require gradients and accumulate them, though only the latent is optimised;
- the features are upsampled to image size and stored, once more for the start picture;
- a Python loop over the points, with ``nonzero`` and ``.item()`` in it;
- the mask loss multiplies and subtracts at image size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from draggan_fast import DragConfig, Model
from draggan_fast.generator import StyledConv


@dataclass
class PublishedDrag:
    """A drag as the published program makes it; points are (x, y) here too.

    model: its modules are copied, not its weights, since this program lets them collect gradients.
    w0: [num_ws, w_dim].
    movable_mask: [H, W] float32 on the model's device, 1 where the picture may change.
    """

    model: Model
    w0: Tensor
    handle_points: list[tuple[int, int]]
    target_points: list[tuple[int, int]]
    config: DragConfig
    movable_mask: Tensor | None = None
    references: list[Tensor] = field(default_factory=list)
    start_feature: Tensor | None = None

    def __post_init__(self) -> None:
        shared = self.model.generator
        # The same storage, for memory's sake: nothing here writes to a weight.
        ours = {id(p): torch.nn.Parameter(p.detach()) for p in shared.parameters()}
        self.generator = copy.deepcopy(shared, ours).requires_grad_(True)
        for module in self.generator.modules():
            if isinstance(module, StyledConv):
                module.weight_energy = None  # these weights may change, so nothing of them is known beforehand
        self.start = self.w0[None].detach()
        rows = self.start[:, :1] if self.config.space == "w" else self.start
        self.w = rows.clone().requires_grad_(True)
        self.optimiser = torch.optim.Adam([self.w], lr=self.config.lr)

    def step(self) -> tuple[float | None, bool, Tensor]:
        """(loss that was back-propagated or None, stop flag, picture uint8 [H, W, 3]); the handles are updated."""
        config = self.config
        height, width = self.model.image_size
        ws = self._ws()
        activations = self.generator.features(ws, self.generator.config.num_blocks - 1)
        image = self.generator.render(activations, ws)
        feature = F.interpolate(activations.outputs[config.feature_block], size=(height, width), mode="bilinear")

        if self.start_feature is None:
            self.start_feature = feature.detach().clone()
            self.references = [self.start_feature[:, :, y, x] for x, y in self.handle_points]
        self._track(feature.detach())

        loss = torch.zeros((), device=feature.device)
        stop = True
        limit = config.stop_pixels(height, len(self.handle_points))
        for handle, target in zip(self.handle_points, self.target_points):
            d = torch.tensor(target, dtype=torch.float32, device=feature.device)
            d = d - torch.tensor(handle, dtype=torch.float32, device=feature.device)
            length = d.norm().item()
            stop = stop and length <= limit
            if length > min(1, limit):
                loss = loss + self._supervise(feature, handle, d / (length + 1e-7))
        if self.movable_mask is not None and 0 < self.movable_mask.mean().item() < 1:
            fixed = 1 - self.movable_mask
            loss = loss + config.lambda_mask * F.l1_loss(feature * fixed, self.start_feature * fixed)
        if config.reg:
            loss = loss + config.reg * (ws - self.start).abs().mean()

        if not stop:
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        picture = (image[0].detach() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        return None if stop else loss.item(), stop, picture

    @property
    def w_plus(self) -> Tensor:
        """[num_ws, w_dim]: the latent after the last update."""
        return self._ws()[0].detach()

    def _ws(self) -> Tensor:
        """[1, num_ws, w_dim]: the rows that follow the optimiser, then the start latent's."""
        layers = self.config.layers
        first = self.w.expand(-1, layers, -1) if self.config.space == "w" else self.w[:, :layers]
        return torch.cat([first, self.start[:, layers:]], dim=1)

    def _track(self, feature: Tensor) -> None:
        height, width = self.model.image_size
        radius = self.config.pixels(self.config.r2, height)
        for index, (x, y) in enumerate(self.handle_points):
            top, left = max(y - radius, 0), max(x - radius, 0)
            patch = feature[0, :, top : min(y + radius + 1, height), left : min(x + radius + 1, width)]
            distance = torch.norm(patch - self.references[index].reshape(-1, 1, 1), dim=0)
            row, column = divmod(distance.argmin().item(), distance.shape[1])
            self.handle_points[index] = (left + int(column), top + int(row))

    def _supervise(self, feature: Tensor, handle: tuple[int, int], d: Tensor) -> Tensor:
        height, width = self.model.image_size
        radius = self.config.pixels(self.config.r1, height)
        rows = torch.linspace(0, height, height, device=feature.device)[:, None]
        columns = torch.linspace(0, width, width, device=feature.device)[None, :]
        near = ((columns - handle[0]) ** 2 + (rows - handle[1]) ** 2).sqrt() < radius
        i, j = near.nonzero(as_tuple=True)
        grid = torch.stack([(j + d[0]) / (width - 1) * 2 - 1, (i + d[1]) / (height - 1) * 2 - 1], dim=-1)
        shifted = F.grid_sample(feature, grid[None, None], align_corners=True)[0, :, 0]
        return F.l1_loss(feature[0, :, i, j].detach(), shifted)
