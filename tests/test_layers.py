"""The arrows of the design, read off the import statements."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "draggan_fast"

# Every module of the package, and all it may import of the package (errors and version are for everyone).
ALLOWED = {
    "__init__": {"config", "generator", "loading", "server", "session"},  # all but errors for type checkers only
    "__main__": {"cli"},
    "_family_common": {"_pickle_data", "_tensor_data", "generator"},
    "_family_nvidia": {"_family_common", "_pickle_data", "_tensor_data", "generator"},
    "_family_rosinality": {"_family_common", "_pickle_data"},
    "_family_tensorflow": {"_family_common", "_pickle_data"},
    "_pickle_data": set(),
    "_tensor_data": {"_pickle_data"},
    "_torch_files": {"_pickle_data", "_tensor_data"},
    "argument_checks": {"models"},
    "arithmetic": set(),
    "atomic": set(),
    "checkpoint": {
        "_family_common", "_family_nvidia", "_family_rosinality", "_family_tensorflow",
        "_pickle_data", "_tensor_data", "_torch_files", "atomic", "generator",
    },
    "cli": {"argument_checks", "cli_measure", "commands", "models", "serve_command"},
    "cli_measure": set(),
    "command_common": {"argument_checks", "loading", "media"},
    "commands": {
        "argument_checks", "checkpoint", "command_common", "drag_command", "engine", "graphs", "loading", "media",
        "models", "ops", "session", "session_file", "synthesis_ops",
    },
    "config": set(),
    "download": {"atomic"},
    "drag_command": {"atomic", "command_common", "config", "latent_file", "loading", "media", "session"},
    "engine": {"frozen", "generator", "packed_conv", "places", "regions", "views"},
    "errors": set(),
    "frozen": {"generator", "packed_conv", "packed_up", "synthesis_ops"},
    "generator": {"checkpoint"},  # for type checkers only
    "graphs": {"config", "engine", "static_step"},
    "inputs": set(),
    "latent_file": set(),
    "live_exports": {
        "command_common", "live_hub", "live_pictures", "live_session", "live_worker", "media", "protocol", "session",
    },
    "live_hub": {"live_models", "live_session", "live_viewer", "live_worker", "loading", "metrics", "protocol"},
    "live_models": {"config", "engine", "loading", "protocol", "session", "session_file", "session_state"},
    "live_pictures": {"live_models", "media", "session"},
    "live_screen": {"live_pictures", "live_stats", "live_viewer", "metrics", "protocol", "session"},
    "live_security": set(),
    "live_session": {
        "live_models", "live_pictures", "live_screen", "live_strokes", "live_timeline", "live_viewer", "metrics",
        "protocol", "session",
        "session_state",
    },
    "live_socket": {
        "config", "live_hub", "live_models", "live_session", "live_upload", "live_viewer", "live_worker", "protocol",
    },
    "live_stats": {"live_viewer", "metrics"},
    "live_timeline": {"session_state"},
    "live_strokes": {"protocol"},
    "live_upload": {"protocol"},
    "live_viewer": {"protocol"},
    "live_worker": set(),
    "loading": {"checkpoint", "config", "engine", "generator", "models"},
    "media": {"atomic", "overlay"},
    "metrics": set(),
    "models": {"atomic", "checkpoint", "download"},
    "ops": {"kernels"},
    "overlay": set(),
    "packed_conv": {"synthesis_ops"},
    "places": {"frozen"},
    "packed_up": {"packed_conv", "synthesis_ops"},
    "protocol": set(),
    "regions": {"frozen", "places"},
    "serve_command": {
        "argument_checks", "command_common", "live_security", "loading", "models", "protocol", "server",
    },
    "server": {"live_exports", "live_hub", "live_security", "live_socket", "loading", "models", "protocol"},
    "session": {
        "arithmetic", "config", "engine", "graphs", "inputs", "loading", "ops", "session_file", "session_state",
        "start_latent", "static_step", "views",
    },  # session_file late
    "session_file": {"atomic", "config", "engine", "inputs", "loading", "session", "session_state"},
    "session_state": {"config"},
    "start_latent": {"config", "inputs", "loading"},
    "static_step": {"config", "engine", "ops", "places", "regions", "views"},
    "synthesis_ops": {"kernels", "ops"},
    "version": set(),
    "views": {"ops"},
}  # fmt: skip


def absolute_imports(path, package):
    """Every module a file imports, by its absolute name; ``from a import b`` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def package_imports(path, package="draggan_fast"):
    """Which modules of draggan_fast a file imports, by their names in it."""
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {"kernels"}
    parts = {name.split(".")[1] for name in absolute_imports(path, package) if name.startswith("draggan_fast.")}
    return parts & modules


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_every_module_imports_only_what_it_may():
    assert set(ALLOWED) == {p.stem for p in PACKAGE.glob("*.py")}
    for module, allowed in ALLOWED.items():
        found = package_imports(PACKAGE / f"{module}.py") - {"errors", "version"}
        assert found <= allowed, f"{module} imports {sorted(found - allowed)}"


def test_the_list_above_has_no_dead_entries():
    for module, allowed in ALLOWED.items():
        assert allowed <= package_imports(PACKAGE / f"{module}.py"), module


def test_only_the_ops_files_touch_torch_ops():
    for path in PACKAGE.glob("*.py"):
        assert path.name in ("ops.py", "synthesis_ops.py", "packed_conv.py") or "torch.ops" not in text_of(path), (
            path.name
        )


def test_who_needs_the_packages_of_the_extra_serve():
    """And protocol.py needs nothing but the standard library: clients read frames with it."""
    users = {
        "starlette": {"live_exports", "live_security", "live_socket", "server"},
        "uvicorn": {"serve_command"},
        "prometheus_client": {"metrics"},
        "torch": {"protocol", "live_viewer", "live_worker", "live_stats", "metrics"},
    }
    found = {path.stem: absolute_imports(path, "draggan_fast") for path in PACKAGE.glob("*.py")}
    for package in ("starlette", "uvicorn", "prometheus_client"):
        assert {m for m, names in found.items() if any(n.split(".")[0] == package for n in names)} == users[package]
    for module in users["torch"]:
        assert not any(name.split(".")[0] == "torch" for name in found[module]), module


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").glob("*.py"):
        imported = absolute_imports(path, "draggan_fast.kernels")
        assert not {n for n in imported if n.startswith("draggan_fast") and ".kernels" not in n}, path.name


def test_nothing_imports_tests_bench_or_tools():
    for folder in (PACKAGE, ROOT / "kernels"):
        for path in folder.rglob("*.py"):
            tops = {name.split(".")[0] for name in absolute_imports(path, "draggan_fast")}
            assert not tops & {"tests", "bench", "tools"}, path


def test_only_the_command_line_reaches_the_benchmarks():
    for path in PACKAGE.glob("*.py"):
        assert path.name == "cli_measure.py" or "draggan_fast.bench" not in text_of(path), path.name


def test_kernels_and_benchmarks_are_not_top_level_names():
    assert importlib.util.find_spec("draggan_fast.kernels.reference") is not None
    assert importlib.util.find_spec("draggan_fast.bench.published") is not None
    for folder in ("draggan_fast", "kernels", "tools", "bench", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            tops = {name.split(".")[0] for name in absolute_imports(path, "draggan_fast")}
            assert not tops & {"kernels", "bench"}, f"{path}: import draggan_fast.kernels, draggan_fast.bench"


def test_files_can_be_read_in_one_sitting():
    for folder in ("draggan_fast", "kernels", "tests", "bench", "tools", "csrc"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert len(text_of(path).splitlines()) <= 600, path
