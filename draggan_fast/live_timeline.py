"""The states of a drag that are kept to go back to: every one at first, every second, fourth, … as it grows long."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .session_state import SessionState

MAX_KEPT = 100


class Timeline:
    """Kept states in the order of their steps, and which of them the picture is.

    What is kept is thinned evenly, so that its memory is bounded however long a drag takes; the first and the present
    state always stay.
    """

    def __init__(self, state: SessionState) -> None:
        self.states = [state]
        self.position = 0
        self._stride = 1

    def __len__(self) -> int:
        return len(self.states)

    def add(self, state: SessionState) -> None:
        """After a step: what came after the present position is forgotten."""
        del self.states[self.position + 1 :]
        if len(self.states) > 1 and len(self.states[-1].trajectory) % self._stride:
            self.states.pop()  # it was kept only as long as it was the present one
        self.states.append(state)
        while len(self.states) > MAX_KEPT:
            self._stride *= 2
            first, *rest, last = self.states
            self.states = [first, *(s for s in rest if len(s.trajectory) % self._stride == 0), last]
        self.position = len(self.states) - 1

    def amend(self, state: SessionState) -> None:
        """Points, mask or settings have changed, the picture has not."""
        self.states[self.position] = state

    def go(self, index: int) -> SessionState:
        self.position = index
        return self.states[index]

    def find(self, state: SessionState) -> None:
        """After undo, redo or reset: to where this picture is kept, or it is added behind the present one."""
        for index, kept in enumerate(self.states):
            if kept.parameter is state.parameter:
                self.position = index
                return self.amend(state)
        if not len(state.trajectory):  # the start picture, made anew
            self.position = 0
            if not len(self.states[0].trajectory):
                return self.amend(state)
            self.states.insert(0, state)
            return None
        del self.states[self.position + 1 :]
        self.states.append(state)
        self.position = len(self.states) - 1
        return None


def held_bytes(states: Iterable[SessionState]) -> int:
    """What these states hold, in bytes; tensors that several of them share count once."""
    seen: dict[int, int] = {}
    for state in states:
        for value in vars(state).values():
            if isinstance(value, Tensor):
                seen[value.data_ptr()] = value.nelement() * value.element_size()
    return sum(seen.values())
