"""Steps that a GPU makes without the host: captured once in a CUDA graph, replayed, their results read late.

``static_step`` is the step; here is what surrounds it on a device. A ``CapturedStep`` owns the buffers of one plan and
is shared by all sessions on a network: a session's state is copied into the buffers where they hold another one. An
enqueued step leaves a snapshot (clones: states never change) and a small record in pinned memory, behind an event. So a
session can enqueue a step before it has read the one before; the GPU never waits for the host.

All steps on one device run in the order in which they were enqueued, whatever threads and streams that came from, and
their graphs share one memory pool: nothing inside it outlives a replay. On a CPU a step simply runs when it is
enqueued; the tests use that. DRAGGAN_FAST_GRAPH=off makes sessions on a GPU step without all this.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .config import DragConfig
from .engine import Engine, FastEngine, switched_on
from .errors import DragError
from .static_step import HEADER, StepBuffers, StepPlan, plan_for, static_step

ENVIRONMENT = "DRAGGAN_FAST_GRAPH"
WARM_UPS = 2  # steps before the capture: kernels are compiled and loaded, libraries make their plans
MAX_CAPTURED = 8  # graphs kept for one network; beyond, the one that was not used for longest goes


class StepInputs(NamedTuple):
    """What a step begins from: of a session's state, w0 [1, num_ws, w_dim], the held feature (None without a mask) and
    settings. Its tensors are never written to, so that the same objects are the same values."""

    parameter: Tensor
    adam_mean: Tensor
    adam_variance: Tensor
    adam_steps: int
    handle_points: Tensor  # [1, N, 2]
    references: Tensor | None
    w0: Tensor
    target_points: Tensor
    movable_mask: Tensor | None
    feature0: Tensor | None
    lr: float
    lambda_mask: float
    reg: float
    stop_distance: float

    def same(self, other: StepInputs | None) -> bool:
        return other is not None and not self.changed_from(other)

    def changed_from(self, other: StepInputs | None) -> set[str]:
        """The names of the entries that differ; all of them if there is no other."""
        if other is None:
            return set(self._fields)
        pairs = zip(self._fields, self, other, strict=True)
        return {n for n, a, b in pairs if a is not b and (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b)}


class StepRecord(NamedTuple):
    """What the host reads of a step: handle_points [N, 2] and distances [N] float32; loss None where none was
    back-propagated. Not ran: the drag had ended before. Neither done nor finite: the step was undone."""

    ran: bool
    done: bool
    finite: bool
    loss: float | None
    handle_points: np.ndarray
    distances: np.ndarray


class DragState(Protocol):
    """Of ``session.SessionState`` what a step reads."""

    @property
    def parameter(self) -> Tensor: ...
    @property
    def adam_mean(self) -> Tensor: ...
    @property
    def adam_variance(self) -> Tensor: ...
    @property
    def adam_steps(self) -> int: ...
    @property
    def handle_points(self) -> Tensor | None: ...
    @property
    def target_points(self) -> Tensor | None: ...
    @property
    def references(self) -> Tensor | None: ...
    @property
    def movable_mask(self) -> Tensor | None: ...


class Slot:
    """Where a record arrives on the host: pinned memory, and the event after the copy (on a CPU neither is needed)."""

    def __init__(self, like: Tensor) -> None:
        on_gpu = like.device.type == "cuda"
        self._values = torch.empty(like.shape, dtype=like.dtype, pin_memory=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None

    def take(self, record: Tensor) -> None:
        self._values.copy_(record, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> np.ndarray:
        """A copy of what was taken last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.numpy().copy()


class Pending:
    """An enqueued step: what it began from, and what it leaves."""

    def __init__(
        self, plan: StepPlan, before: StepInputs, after: StepInputs, slot: Slot, free_slots: list[Slot]
    ) -> None:
        self.plan, self.before, self.after = plan, before, after
        self._slot, self._free_slots = slot, free_slots

    def read(self) -> StepRecord:
        """Waits for this step, not for what was enqueued after it. To be called once: then others get the slot. (That
        of a step that is never read goes the way of all tensors.)"""
        values = self._slot.wait()
        self._free_slots.append(self._slot)
        count, bucket = self.before.handle_points.shape[1], self.plan.bucket
        ran, done, finite = (bool(entry) for entry in values[: HEADER - 1])
        handles, distances = values[HEADER : HEADER + 2 * bucket], values[HEADER + 2 * bucket :]
        return StepRecord(
            ran=ran,
            done=done,
            finite=finite,
            loss=None if done else float(values[HEADER - 1]),
            handle_points=handles.reshape(bucket, 2)[:count],
            distances=distances[:count],
        )


class Lane:
    """What the steps on one device share: the order in which they run, and their graphs' memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._last: torch.cuda.Event | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """What is enqueued inside, on the current stream, runs after what was enqueued in an earlier turn."""
        if self.device.type != "cuda":
            with self.lock:
                yield
            return
        with self.lock, torch.cuda.device(self.device):
            if self._last is not None:  # of another thread's stream, perhaps
                torch.cuda.current_stream().wait_event(self._last)
            try:
                yield
            finally:
                self._last = torch.cuda.Event()
                self._last.record()

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step as a graph: its replay. Runs it a few times. To be called in a turn.

        Raises DragError if it cannot be captured.
        """
        if self.device.type != "cuda":
            return step
        if self._pool is None or self._stream is None:
            # subtle: one stream for warm-up and capture. Libraries keep a workspace per stream, and one that is made
            # during a capture would lie in the graphs' pool.
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            raise DragError(
                f"This step cannot be captured in a CUDA graph ({error}); set {ENVIRONMENT}=off to go without graphs."
            ) from error
        return graph.replay


lane_of = cache(Lane)


class CapturedStep:
    """The buffers of one plan, and the replay of its step over them."""

    def __init__(self, engine: FastEngine, plan: StepPlan) -> None:
        self.plan, self.lane = plan, lane_of(engine.device)
        self.buffers = buffers = StepBuffers.allocate(engine, plan)
        self._held: StepInputs | None = None  # what the buffers hold, as far as the host knows
        self._free_slots: list[Slot] = []
        with self.lane.turn():
            self._replay = self.lane.captured(lambda: static_step(engine, plan, buffers))

    def enqueue(self, inputs: StepInputs) -> Pending:
        """Enqueues a step from these inputs on the current stream; the host does not wait."""
        with self.lane.turn():
            self._load(inputs)
            self._replay()
            slot = self._free_slots.pop() if self._free_slots else Slot(self.buffers.record)
            slot.take(self.buffers.record)
            self._held = self._snapshot(inputs)
            return Pending(self.plan, inputs, self._held, slot, self._free_slots)

    @torch.no_grad()
    def _load(self, inputs: StepInputs) -> None:
        """Brings the buffers to these inputs; copies only what they do not hold."""
        b, changed = self.buffers, inputs.changed_from(self._held)
        self._held = None  # until all is done
        if not changed:
            return  # the next step of the same drag: done and failed go on too
        count = inputs.handle_points.shape[1]
        for name in changed:
            value, buffer = getattr(inputs, name), getattr(b, name)
            if name in ("handle_points", "target_points"):
                buffer[:, :count].copy_(value)
                buffer[:, count:].zero_()
            elif name == "references":
                buffer[:, count:].zero_()
                buffer[:, :count].fill_(torch.nan) if value is None else buffer[:, :count].copy_(value)
            elif buffer is None:
                continue  # the mask, of a plan that has none
            elif isinstance(value, Tensor):
                buffer.copy_(value)
            else:
                buffer.fill_(value)
        b.active[:, :count].fill_(True)
        b.active[:, count:].fill_(False)
        b.done.fill_(False)
        b.failed.fill_(False)

    @torch.no_grad()
    def _snapshot(self, inputs: StepInputs) -> StepInputs:
        b, count = self.buffers, inputs.handle_points.shape[1]
        return inputs._replace(
            parameter=b.parameter.clone(),
            adam_mean=b.adam_mean.clone(),
            adam_variance=b.adam_variance.clone(),
            adam_steps=inputs.adam_steps + 1,
            handle_points=b.handle_points[:, :count].clone(),
            references=b.references[:, :count].clone(),
        )


def captured_step(engine: FastEngine, plan: StepPlan) -> CapturedStep:
    """The captured step of this plan, made at its first use and kept with the network."""
    kept: OrderedDict[StepPlan, CapturedStep] = engine.captured
    with lane_of(engine.device).lock:
        if plan not in kept:
            kept[plan] = CapturedStep(engine, plan)
            while len(kept) > MAX_CAPTURED:
                kept.popitem(last=False)
        kept.move_to_end(plan)
        return kept[plan]


class StepQueue:
    """A session's steps; at most one is enqueued that the session has not asked for."""

    def __init__(self, engine: FastEngine) -> None:
        self.engine = engine
        self._ahead: Pending | None = None
        self._planned: tuple[tuple[Any, ...], StepPlan] | None = None

    def step(
        self, state: DragState, config: DragConfig, w0: Tensor, feature0: Tensor | None, ahead: bool
    ) -> tuple[StepRecord, dict[str, Any]]:
        """The record of the step from this state, and the entries of the state that it changes.

        feature0: what the mask loss holds on to, None if it holds nothing.  ahead: another step will be asked for next,
        from the state that this one leaves; it is enqueued before this one is read.
        """
        assert state.handle_points is not None
        assert state.target_points is not None
        count = state.handle_points.shape[1]
        inputs = StepInputs(
            parameter=state.parameter,
            adam_mean=state.adam_mean,
            adam_variance=state.adam_variance,
            adam_steps=state.adam_steps,
            handle_points=state.handle_points,
            references=state.references,
            w0=w0,
            target_points=state.target_points,
            movable_mask=None if feature0 is None else state.movable_mask,
            feature0=feature0,
            lr=config.lr,
            lambda_mask=config.lambda_mask,
            reg=config.reg,
            stop_distance=config.stop_pixels(self.engine.size[0], count),
        )
        plan = self._plan(w0, config, count, feature0 is not None)
        pending = self._ahead
        if pending is None or pending.plan != plan or not pending.before.same(inputs):
            pending = captured_step(self.engine, plan).enqueue(inputs)
        self._ahead = captured_step(self.engine, plan).enqueue(pending.after) if ahead else None
        record = pending.read()
        if record.done or not record.finite:
            self._ahead = None
        changes = {"handle_points": pending.after.handle_points, "references": pending.after.references}
        if not record.done:
            moved = ("parameter", "adam_mean", "adam_variance", "adam_steps")
            changes |= {name: getattr(pending.after, name) for name in moved}
        return record, changes | {"moved": not record.done}

    def _plan(self, w0: Tensor, config: DragConfig, points: int, masked: bool) -> StepPlan:
        asked = (w0.shape[1:], config, points, masked)
        if self._planned is None or self._planned[0] != asked:
            self._planned = asked, plan_for(self.engine, w0.shape[1], w0.shape[2], config, points, masked)
        return self._planned[1]


def queue_for(engine: Engine) -> StepQueue | None:
    """A session's queue, if its steps are to be captured: those of the fast engine on a GPU."""
    if isinstance(engine, FastEngine) and captures(engine.device):
        return StepQueue(engine)
    return None


def captures(device: torch.device) -> bool:
    """Whether the fast engine's steps are captured on this device. Raises DragError for a wrong DRAGGAN_FAST_GRAPH."""
    return switched_on(ENVIRONMENT, usual=True) and device.type == "cuda"


def about(device: torch.device) -> str:
    """How the fast engine makes its steps on this device, and why, for ``draggan-fast doctor``."""
    if device.type != "cuda":
        return "one by one; CUDA graphs are for GPUs"
    if not captures(device):
        return f"one by one: {ENVIRONMENT}=off"
    return (
        f"captured in CUDA graphs, a run's results read one step late; {ENVIRONMENT}=off makes them one by one; by "
        "reasoning, not measured on a GPU yet"
    )
