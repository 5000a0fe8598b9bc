"""The errors a user may see: each message is one sentence that says what, where and what to do."""

from __future__ import annotations


class DragError(ValueError):
    """Bad input, told in one clear sentence; whatever was being worked on is left unchanged."""


class CheckpointError(DragError):
    """A network file that cannot be used: unreadable, hostile, incomplete or of an unsupported kind."""


class ModelError(DragError):
    """A model that cannot be found, downloaded or verified."""


class MediaError(DragError):
    """A picture, animation or mask that cannot be read or written."""
