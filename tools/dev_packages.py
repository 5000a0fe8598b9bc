"""Prints the packages of the extra ``dev``, one a line: so that they can be installed without building ours again."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
print("\n".join(project["optional-dependencies"]["dev"]))
