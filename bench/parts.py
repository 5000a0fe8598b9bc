"""A drag step cut into its parts, without changing what it computes or how long it takes.

A ``Timeline`` is always in exactly one part: switching to the next ends the one before, so that the parts cover the
step by construction and what nobody claimed is called "rest". ``dissected`` makes a session switch: hooks on the
synthesis blocks tell where each forward begins, hooks on their outputs' gradients where each backward begins.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from draggan_fast import DragSession, Model, ops
from draggan_fast.engine import FastEngine

REST = "rest"
MAPPING, RENDER, ENCODE = "mapping", "render", "encode"  # once a picture, or once a frame: outside the step
TRACKING, SUPERVISION, MASK, ADAM = "tracking", "supervision", "mask", "Adam"

Watcher = Callable[[str | None], None]


def forward_part(block: int) -> str:
    return f"{4 << block}² forward"


def backward_part(block: int) -> str:
    return f"{4 << block}² backward"


def step_parts(model: Model, *, masked: bool) -> list[str]:
    """The parts of a step, in the order in which they run; "rest" last."""
    blocks = range(model.drag_config().feature_block + 1)
    losses = [SUPERVISION, MASK] if masked else [SUPERVISION]
    return [
        *map(forward_part, blocks),
        TRACKING,
        *losses,
        *map(backward_part, reversed(blocks)),
        ADAM,
        REST,
    ]


class Timeline:
    """Times of the parts of one step after another, in ms: the host's clock, or CUDA events on the current stream.

    watchers are told of every switch, and with None of the end, for those who count or draw what happens in a part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watchers: list[Watcher] = []
        self.steps: list[dict[str, float]] = []
        self._marks: list[tuple[str | None, Any]] = []
        self._part: str | None = None  # None: no step is under way

    def switch(self, part: str) -> str | None:
        """The step goes on with this part; returns the one before. Outside a step it does nothing."""
        before = self._part
        if before is not None:
            self._mark(part)
        return before

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this part; then the one before goes on."""
        before = self.switch(name)
        yield
        if before is not None:
            self.switch(before)

    @contextlib.contextmanager
    def step(self, first: str = REST) -> Iterator[None]:
        """What runs inside is one step; its times are appended to ``steps``. On CUDA it waits for the device."""
        self._marks = []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._mark(first)
        try:
            yield
        finally:
            self._mark(None)
        self.steps.append(self._durations())

    def _mark(self, part: str | None) -> None:
        self._marks.append((part, self._now()))
        self._part = part
        for watcher in self.watchers:
            watcher(part)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _durations(self) -> dict[str, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        taken: defaultdict[str, float] = defaultdict(float)
        for (part, start), (_, end) in zip(self._marks, self._marks[1:]):
            assert part is not None  # only the last mark has none
            taken[part] += start.elapsed_time(end) if self.device.type == "cuda" else (end - start) * 1e3
        return dict(taken)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object or module has another value inside."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def dissected(session: DragSession, timeline: Timeline) -> Iterator[None]:
    """Inside, a step of this session switches the timeline from part to part.

    The backward of a block ends where the gradient of its input is complete: autograd runs what was recorded last
    first, so the styles of a block come before the block below it. The backward of block 0 includes that of the
    optimised rows of w_plus. Of the fast engine the layers themselves are timed; what lies between them (styles, crops)
    is part of "rest".
    """

    def within(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with timeline.part(part):
                return function(*arguments, **options)

        return run

    def switching_to(part: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            timeline.switch(part)

        return hook

    def enter(part: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            timeline.switch(part)

        return hook

    def leave(part: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(switching_to(part))
            timeline.switch(REST)

        return hook

    with contextlib.ExitStack() as stack:
        if isinstance(session._engine, FastEngine):
            for index, frozen in enumerate(session._engine.synthesis.layers):
                block = (index + 1) // 2  # block 0 has one layer, every other two
                for part, methods in (
                    (forward_part(block), ("forward", "forward_valid")),
                    (backward_part(block), ("backward", "backward_valid")),
                ):
                    for method in methods:
                        stack.enter_context(replaced(frozen, method, within(part, getattr(frozen, method))))
        else:
            network = session.model.generator.synthesis
            for index, layer in enumerate(network.blocks[: session.config.feature_block + 1]):
                stack.callback(layer.register_forward_pre_hook(enter(forward_part(index))).remove)
                stack.callback(layer.register_forward_hook(leave(backward_part(index))).remove)
        stack.enter_context(replaced(ops, "motion_supervision", within(SUPERVISION, ops.motion_supervision)))
        stack.enter_context(replaced(ops, "mask_loss", within(MASK, ops.mask_loss)))
        stack.enter_context(replaced(session, "_track", within(TRACKING, session._track)))
        stack.enter_context(replaced(session, "_adam", within(ADAM, session._adam)))
        yield
