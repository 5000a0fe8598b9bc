"""The arrows of the design, read off the import statements."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "draggan_fast"

# What may import what inside the package. A module not listed may be imported by all and imports only errors.
FORBIDDEN = {
    "checkpoint": {"session", "session_file", "loading", "commands", "drag_command", "cli", "models", "media", "ops"},
    "models": {"session", "session_file", "loading", "commands", "drag_command", "cli", "media", "ops", "generator"},
    "media": {"session", "session_file", "loading", "commands", "drag_command", "cli", "models", "ops", "generator"},
    "generator": {"session", "session_file", "loading", "commands", "drag_command", "cli", "models", "media"},
    "ops": {"session", "session_file", "loading", "commands", "drag_command", "cli", "models", "media", "generator"},
    "session": {"commands", "drag_command", "cli", "media", "models", "checkpoint"},
    "session_file": {"commands", "drag_command", "cli", "media"},
    "loading": {"session", "session_file", "commands", "drag_command", "cli", "media"},
}


def imports(path):
    """Modules a file imports: relative ones as package names ("ops", "kernels"), others as their top names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found |= {node.module} if node.module else {alias.name for alias in node.names}
            else:
                found.add(node.module)
                if node.module == "draggan_fast":
                    found |= {f"draggan_fast.{alias.name}" for alias in node.names}
    return found


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_modules_import_downwards_only():
    for module, forbidden in FORBIDDEN.items():
        found = imports(PACKAGE / f"{module}.py")
        assert found, module
        if module == "session":  # save and load reach the file format late, inside their methods
            found.discard("session_file")
        assert not found & forbidden, f"{module} imports {found & forbidden}"


def test_only_ops_touches_kernels_and_torch_ops():
    for path in PACKAGE.glob("*.py"):
        if path.name != "ops.py":
            assert not any(str(name).startswith("kernels") for name in imports(path)), path.name
            assert "torch.ops" not in text_of(path), path.name


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not any(str(name).startswith("draggan_fast") for name in imports(path)), path.name


def test_nothing_imports_tests_bench_or_tools():
    for folder in (PACKAGE, ROOT / "kernels"):
        for path in folder.rglob("*.py"):
            assert not any(str(n).split(".")[0] in ("tests", "bench", "tools") for n in imports(path)), path


def test_kernels_are_not_a_top_level_name():
    import importlib.util

    spec = importlib.util.find_spec("draggan_fast.kernels.reference")
    assert spec is not None
    for folder in ("kernels", "tools", "bench", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert "kernels" not in imports(file), f"{file}: import draggan_fast.kernels"


def test_files_can_be_read_in_one_sitting():
    for folder in ("draggan_fast", "kernels", "tests", "bench", "tools", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert len(text_of(path).splitlines()) <= 600, path
