"""draggan_fast: Drag Your GAN (Pan et al., SIGGRAPH 2023) as a performance engine.

import draggan_fast as dg
session = dg.DragSession(dg.load("toy-animals"), seed=5)
session.set_points([(64, 74)], [(76, 66)])
session.run()
picture = session.render()  # uint8 [H, W, 3]
"""

from .errors import CheckpointError, DragError, MediaError, ModelError
from .generator import Generator, GeneratorConfig
from .loading import Model, load
from .session import DragConfig, DragSession, StepResult
from .version import __version__

__all__ = [
    "CheckpointError",
    #    "DragConfig",
    "DragError",
    #    "DragSession",
    "Generator",
    "GeneratorConfig",
    "MediaError",
    #    "Model",
    "ModelError",
    #    "StepResult",
    "__version__",
    #    "load",
]
