"""draggan_fast: Drag Your GAN (Pan et al., SIGGRAPH 2023) as a performance engine.

    import draggan_fast as dg

    session = dg.DragSession(dg.load("toy-animals"), seed=33)
    session.set_points([(64, 69)], [(50, 77)])
    session.run()
    picture = session.render()  # uint8 [H, W, 3]

Names are imported when first used: torch takes a second or two to import, and ``draggan-fast --help`` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import CheckpointError, DragError, MediaError, ModelError
from .version import __version__

if TYPE_CHECKING:
    from .config import DragConfig
    from .generator import Generator, GeneratorConfig
    from .loading import Model, load
    from .server import create_app
    from .session import DragSession, StepResult

_HOME = {
    "DragConfig": "config",
    "DragSession": "session",
    "Generator": "generator",
    "GeneratorConfig": "generator",
    "Model": "loading",
    "StepResult": "session",
    "create_app": "server",
    "load": "loading",
}

__all__ = [
    "CheckpointError",
    "DragConfig",
    "DragError",
    "DragSession",
    "Generator",
    "GeneratorConfig",
    "MediaError",
    "Model",
    "ModelError",
    "StepResult",
    "__version__",
    "create_app",
    "load",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and flags names that do not exist

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if name != "create_app":
                raise
            raise DragError(f"create_app needs {error.name}, from the extra draggan-fast[serve].") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
