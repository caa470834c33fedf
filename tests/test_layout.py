"""The dependency rule of CONTRIBUTING.md, and the traps of the layout that was asked for."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"profiling", "quantization", "batching", "adaptation", "distillation"}
# The closed forms and the fingerprint of the profile stage are read by everyone; its measuring is not.
SHARED_MODULES = {
    f"tasks.profiling.{name}"
    for name in (
        "build_memory",
        "cache_memory",
        "memory_budget",
        "weight_memory",
        "training_memory",
        "environment",
        "recommend",
    )
}
IMPORTERS = {
    "lm_eval": {"tasks/quality/harness.py", "tasks/quality/lm_eval_tasks.py"},
    "openvino_genai": {"tasks/engines/openvino_engine.py", "tasks/engines/openvino_adapters.py"},
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources("flows", "tasks", "configs"), ids=name)
def test_imports_point_one_way(path):
    layer, _, rest = name(path).partition("/")
    stage = rest.partition("/")[0]
    for module in imports(path):
        top = module.partition(".")[0]
        if layer == "configs":
            assert top not in ("tasks", "flows"), f"configs must not import {module}"
        if layer == "tasks":
            assert top != "flows", f"tasks must not import {module}"
            parts = module.split(".")
            if top == "tasks" and len(parts) > 1 and parts[1] in STAGES and module not in SHARED_MODULES:
                assert parts[1] == stage, f"stages do not import each other: {module}"
        if top == "prefect":
            assert layer == "flows" or path.name == "task.py", "only flows and task.py import prefect"
        if top == "mlflow":
            assert name(path).startswith("tasks/tracking/"), "only tasks/tracking imports mlflow"
        if top in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            assert name(path).startswith("tasks/endpoint/"), f"only tasks/endpoint imports {top}"
        if top in IMPORTERS:
            assert name(path) in IMPORTERS[top], f"{top} is imported elsewhere"


def test_mlflow_folder_holds_no_python():
    """A Python file there would shadow the library of the same name."""
    tracked = [
        path
        for path in (ROOT / "mlflow").rglob("*.py")
        if "store" not in path.relative_to(ROOT / "mlflow").parts
    ]
    assert tracked == []
    import mlflow

    assert "site-packages" in str(mlflow.__file__)


@pytest.mark.parametrize("path", sources("flows"), ids=name)
def test_flow_files_shadow_no_module(path):
    """Prefect puts flows/ first on sys.path: a stem like `profile` would replace the standard library's."""
    installed = {
        p.stem for folder in sys.path if folder.endswith("site-packages") for p in Path(folder).iterdir()
    }
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names | installed


def test_no_machine_path_or_registry_address():
    tracked = [
        *sources("flows", "tasks", "configs"),
        ROOT / "requirements.lock",
        ROOT / "Makefile",
        *ROOT.glob("*.md"),
    ]
    for path in tracked:
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path
        assert "/root/" not in text, path
        assert path.name != "requirements.lock" or "://" not in text


@pytest.mark.parametrize("path", sources("flows", "tasks", "configs"), ids=name)
def test_the_readme_shows_every_file(path):
    if path.name != "__init__.py":
        assert f"      {path.name} " in (ROOT / "README.md").read_text(encoding="utf-8"), (
            f"{name(path)} is not in the README's tree"
        )
