"""The models a server offers, and new pictures on them: from a seed, or from a saved session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import session_file
from .config import DragConfig
from .engine import resolve
from .errors import DragError
from .loading import Model
from .protocol import Create
from .session import DragSession
from .session_state import CONFIGURABLE

MAX_RECORD = 25_000  # steps and events of an uploaded session: what a picture may come to here too


class ServedModels:
    """By name, the first one is the default. Raises DragError for none, or two of one name."""

    def __init__(self, models: Sequence[Model], points: int) -> None:
        if not models:
            raise DragError("Give at least one model to serve.")
        self._models: dict[str, Model] = {}
        self._points = points
        for model in models:
            if not isinstance(model, Model):
                raise DragError(f"A served model must be what draggan_fast.load gives, not {type(model).__name__}.")
            if model.name in self._models:
                raise DragError(f"Two of the models are named {model.name!r}; serve one of them.")
            # What "auto" means here is settled now: an uploaded session may name another precision.
            precision = resolve(model.generator, model.device, model.drag_config().engine, model.precision)[1]
            self._models[model.name] = replace(model, precision=precision)

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def get(self, name: str | None) -> Model:
        """None = the default. Raises DragError for a name that is not served."""
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise DragError(f"There is no model {name[:80]!r} here; there is {', '.join(self._models)}.")
        return self._models[name]

    def create(self, message: Create) -> DragSession:
        """A picture from a seed. Raises DragError."""
        return self.from_seed(self.get(message.model), message.seed, message.truncation_psi, message.label)

    @staticmethod
    def from_seed(model: Model, seed: int, psi: float, label: int | None) -> DragSession:
        return DragSession(model, seed=seed, truncation_psi=psi, label=label)

    def open(self, data: bytes) -> DragSession:
        """A saved session from its file's content, on the served model of that content. Raises DragError.

        What decides how much memory and time its steps take must be as it is here: the file is a client's.
        """
        recorded = session_file.recorded_start(data)
        wanted, config, noise = recorded.content_hash, recorded.config, recorded.noise
        if recorded.points > self._points:
            raise DragError(f"This session has {recorded.points} points; this server takes {self._points}.")
        if recorded.length > MAX_RECORD:
            raise DragError(f"This session has {recorded.length} steps and events; this server takes {MAX_RECORD}.")
        for model in self._models.values():
            if model.content_hash == wanted:
                break
        else:
            raise DragError(f"This session was made with a model (content {wanted[:12]}) that is not served here.")
        ours = model.drag_config()
        same_engine = engine_of(model, config) == engine_of(model, ours)
        if noise != "const" or config.feature_block != ours.feature_block or not same_engine:
            raise DragError(
                f"This session drags feature block {config.feature_block} by the engine {config.engine!r} with noise "
                f"{noise[:20]!r}; this server block {ours.feature_block} by {engine_of(model, ours)!r} with 'const'."
            )
        return DragSession.from_bytes(data, model)

    def describe(self) -> list[dict[str, Any]]:
        """What ``/api/models`` and ``welcome`` tell."""
        return [
            {
                "name": model.name,
                "resolution": model.config.resolution,
                "engine": engine_of(model, model.drag_config()),
                "precision": model.precision,
                "settings": settings(model.drag_config()),
                "classes": model.config.c_dim,
            }
            for model in self._models.values()
        ]


def engine_of(model: Model, config: DragConfig) -> str:
    """Who would compute a session with these settings; raises DragError if nobody can."""
    return resolve(model.generator, model.device, config.engine, model.precision)[0]


def settings(config: DragConfig) -> dict[str, Any]:
    """The settings that a client may see and change."""
    return {name: getattr(config, name) for name in CONFIGURABLE}
