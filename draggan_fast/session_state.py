"""What a session remembers: the state that steps replace, the steps made, and the events that made it.

Nothing here is ever written to once it is made, so that keeping a state is a snapshot, and keeping hundreds costs
little more than their latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from .config import DragConfig
from .errors import DragError

T = TypeVar("T")
UNDO_DEPTH = 64
CONFIGURABLE = ("lr", "r1", "r2", "lambda_mask", "reg", "stop_distance", "max_steps")  # while a session is alive


@dataclass(frozen=True, eq=False, slots=True)
class StepResult:
    """One step: its index (from 0), handle_points [N, 2] after tracking, distances [N] to the targets in pixels,
    the loss that was back-propagated (None if the drag was already done), and whether it is done.

    The handles belong to the picture as it was before the step's update. The arrays are read-only.
    """

    index: int
    handle_points: np.ndarray
    distances: np.ndarray
    loss: float | None
    done: bool


class Log(Generic[T]):
    """A sequence that grows at its end and shares what came before: adding costs the same however long it is, and two
    states of one drag do not store its steps twice."""

    __slots__ = ("_before", "_last", "_length")
    _before: Log[T] | None
    _last: T | None

    def __init__(self) -> None:
        self._before, self._last, self._length = None, None, 0

    @classmethod
    def of(cls, items: Iterator[T] | list[T]) -> Log[T]:
        log: Log[T] = cls()
        for item in items:
            log = log.plus(item)
        return log

    def plus(self, item: T) -> Log[T]:
        """The log with one more item."""
        longer: Log[T] = Log()
        longer._before, longer._last, longer._length = self, item, self._length + 1
        return longer

    def with_last(self, item: T) -> Log[T]:
        """The log with another last item."""
        assert self._before is not None
        return self._before.plus(item)

    @property
    def last(self) -> T:
        if self._before is None:
            raise IndexError("the log is empty")
        return self._last  # type: ignore[return-value]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        items: list[T] = []
        log: Log[T] = self
        while log._before is not None:
            items.append(log.last)
            log = log._before
        return reversed(items)


Event = dict[str, Any]


@dataclass(frozen=True, eq=False)
class SessionState:
    """Everything that changes while dragging. A step makes a new state and never writes to the tensors of an old
    one, so that keeping a state is a snapshot."""

    config: DragConfig
    owner: object  # the session that it belongs to: a state of another one has another start latent
    parameter: Tensor  # the optimised latent: [1, layers, w_dim] in w_plus, [1, 1, w_dim] in w
    adam_mean: Tensor
    adam_variance: Tensor
    adam_steps: int = 0
    handle_points: Tensor | None = None  # [1, N, 2] where the handles are now
    target_points: Tensor | None = None
    references: Tensor | None = None  # [1, N, C]; NaN rows are points whose reference is still to be taken
    movable_mask: Tensor | None = None  # [1, H, W] float32
    mask_w_plus: Tensor | None = None  # the latent whose feature the mask loss holds on to
    moved: bool = False  # the latent has changed since the handles were last tracked
    done: bool = False
    drag_open: bool = False  # a step has been made since the points were set
    trajectory: Log[StepResult] = field(default_factory=Log)
    events: Log[Event] = field(default_factory=Log)  # what was done, in order: enough to do it again

    def references_of(self, handles: Tensor) -> Tensor | None:
        """For each new handle [1, N, 2] the reference of the present handle on the same pixel, or a NaN row."""
        if self.references is None or self.handle_points is None:
            return None
        kept = torch.full((1, handles.shape[1], self.references.shape[2]), torch.nan, device=self.references.device)
        present = [tuple(p) for p in self.handle_points[0].tolist()]
        for index, point in enumerate(handles[0].tolist()):
            if tuple(point) in present:
                match = present.index(tuple(point))
                present[match] = ()  # each present handle continues as one handle at most
                kept[0, index] = self.references[0, match]
        return kept


class History:
    """The states that undo goes back to, and those that redo goes forward to; the oldest are forgotten."""

    def __init__(self) -> None:
        self._before: list[SessionState] = []
        self._after: list[SessionState] = []

    def __iter__(self) -> Iterator[SessionState]:
        yield from self._before
        yield from self._after

    def __len__(self) -> int:
        return len(self._before) + len(self._after)

    @property
    def can_undo(self) -> bool:
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        return bool(self._after)

    def remember(self, state: SessionState) -> None:
        """This state can be gone back to, and nothing be redone any more."""
        self._before.append(state)
        del self._before[:-UNDO_DEPTH]
        self.fork()

    def fork(self) -> None:
        """Something else is done now: nothing can be redone any more."""
        self._after.clear()

    def forget_oldest(self) -> bool:
        """False if there is nothing to forget."""
        if self._before:
            del self._before[0]
            return True
        return False

    def back(self, present: SessionState) -> SessionState | None:
        """The state before, if there is one; ``present`` can then be redone."""
        if not self._before:
            return None
        self._after.append(present)
        return self._before.pop()

    def forward(self, present: SessionState) -> SessionState | None:
        """The state that was undone last, if nothing was done since."""
        if not self._after:
            return None
        self._before.append(present)
        return self._after.pop()


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A movable mask in one bit a pixel: a session remembers each mask that was set."""

    bits: np.ndarray  # uint8, from numpy's packbits
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """mask: [H, W] of truth values."""
        return cls(np.packbits(mask), (mask.shape[0], mask.shape[1]))

    def unpack(self) -> np.ndarray:
        """[H, W] bool."""
        return np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).reshape(self.shape).astype(bool)


def add_event(events: Log[Event], event: Event) -> Log[Event]:
    """events with one more. Steps of one sort are counted, settings joined; a mask or targets set again before any step
    replace the earlier ones (not so points: which handle continues depends on every set of them)."""
    last: Event = events.last if len(events) else {"kind": None}
    if last["kind"] != event["kind"] or event["kind"] == "points":
        return events.plus(event)
    if event["kind"] == "steps":
        if last["pictured"] != event["pictured"]:
            return events.plus(event)
        event = {**event, "count": last["count"] + event["count"]}
    if event["kind"] == "settings":
        event = {**event, "changes": {**last["changes"], **event["changes"]}}
    return events.with_last(event)


def changed_settings(before: DragConfig, after: DragConfig) -> dict[str, Any]:
    """The settings of a living session in which the two differ, as they are after."""
    return {name: getattr(after, name) for name in CONFIGURABLE if getattr(before, name) != getattr(after, name)}


def check_configurable(changes: dict[str, Any]) -> None:
    """Raises DragError for a setting that a living session cannot change."""
    for name in itertools.filterfalse(CONFIGURABLE.__contains__, changes):
        raise DragError(f"{name} cannot be changed in a session; what can is {', '.join(CONFIGURABLE)}.")


def read_only(tensor: Tensor) -> np.ndarray:
    array = tensor.cpu().numpy().copy()
    array.setflags(write=False)
    return array
