"""Imports point one way, and `import nondiff` is light."""

import ast
import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest

import nondiff

ROOT = pathlib.Path(nondiff.__file__).parent
SHARED = {
    # what `Auto` chooses from, and what `Opaque` is made of
    "estimators": "marginal_likelihood smoothing tabulate callback calls child failure isolated memo",
    "trainers": "activations adaptation cloud covariance gaussian genotype least_squares margin output_losses parts "
    "rates residuals rho schedules selection stall substeps variation weighting",
    "evaluators": "host vmap",  # what a worker of `Ray` does
    "problems": "stage",
    "signals": "context nets",
}
PLUGINS = {"trainers", "estimators", "evaluators", "problems", "signals"}
HEAVY = {"jax", "jaxlib", "numpy", "scipy", "optax", "equinox", "jaxtyping", "rich", "tyro"}


def imported(path: pathlib.Path) -> set[str]:
    """Parts of nondiff that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("nondiff.") and name.count(".") >= 1}


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: pathlib.Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = {"arrays"} if folder == "arrays" else {"core"}
    if folder == "trainers":
        allowed |= {"arrays"}
    if folder in ("prox", "programs"):
        allowed |= {folder}
    if folder == "testing":
        allowed |= PLUGINS | {"testing"}
    if folder in PLUGINS | {"distributed"}:
        allowed |= {folder}
    if folder in ("evaluators", "run", "launch", "pipeline"):
        allowed |= {"distributed"}
    if folder in ("run", "launch", "pipeline"):
        allowed |= PLUGINS | {"run", folder}
    if folder == "launch":
        allowed |= {"pipeline"}
    assert imported(path) <= allowed


@pytest.mark.parametrize("folder", sorted(PLUGINS))
def test_methods_do_not_import_one_another(folder: str) -> None:
    """Within a folder only shared pieces are imported: noise, weightings, what others are built on."""
    shared = {f"nondiff.{folder}.{name}" for name in SHARED.get(folder, "").split()}
    for path in (ROOT / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"nondiff.{folder}"):
                names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
                assert names & shared, f"{path.name} imports {node.module}"


def modules(*lines: str, cwd: pathlib.Path | None = None) -> set[str]:
    """The packages that a process has imported after these lines."""
    code = "\n".join(["import sys", *lines, "print('', *{name.split('.')[0] for name in sys.modules}, sep='\\n')"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines())


def test_import_is_light() -> None:
    """Nothing heavy comes with `import nondiff`, and no extra with any of its names."""
    extras = {
        re.split(r"[^\w-]", requirement)[0]
        for requirement in importlib.metadata.requires("nondiff") or []
        if "extra ==" in requirement
    } - {"nondiff"}
    assert {"ray", "mlxtend", "matplotlib", "pytest"} <= extras
    out = modules("import nondiff")
    assert "nondiff" in out
    assert not HEAVY & out
    out = modules("from nondiff import *")
    assert {"jax", "numpy", "equinox"} <= out
    assert not extras & (out - modules("import jax"))  # JAX itself takes cloudpickle along where it finds it


@pytest.mark.parametrize("module", ["nondiff.launch.main", "nondiff.run.versions", "nondiff.run.lock"])
def test_modules_without_jax(module: str) -> None:
    assert not HEAVY & modules(f"import {module}")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["list"], ["list", "--json"], ["show", "2026"]])
def test_commands_without_jax(words: list[str], tmp_path: pathlib.Path) -> None:
    run = tmp_path / "runs" / "toy" / "20261121-071503-3f2a"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"format": 1, "status": "running", "step": 1, "steps": 2}')
    (run / "config.json").write_text('{"format": 1, "seed": 0}')
    (run / ".lock").touch()
    call = [
        "from nondiff.launch.main import main",
        f"try: code = main({words})",
        "except SystemExit as stop: code = stop.code",
        "assert code == 0, code",
    ]
    assert not HEAVY & modules(*call, cwd=tmp_path)


def test_public_names() -> None:
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports if node.module for alias in node.names}
    parts = {alias.name for node in imports if not node.module for alias in node.names}
    assert all(node.level == 1 and alias.asname == alias.name for node in imports for alias in node.names)
    assert nondiff.__all__ == sorted(names)
    assert parts == {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert names | parts <= set(dir(nondiff))
    space: dict[str, object] = {}
    exec("from nondiff import *", space)
    assert set(space) - {"__builtins__"} == names
    for name in names:
        assert getattr(nondiff, name) is space[name]
    assert nondiff.OpenES is importlib.import_module("nondiff.trainers.open_es").OpenES
    with pytest.raises(AttributeError, match="No nondiff attribute Nope"):
        nondiff.Nope  # noqa: B018  # pyright: ignore


def test_parts_are_attributes() -> None:
    modules(
        "import nondiff",
        "assert nondiff.testing.check_trainer.__module__ == 'nondiff.testing.trainer'",
        "assert nondiff.core.failures.last_failure() is None",
        "assert nondiff.core.tree.is_none(None) and nondiff.trainers.OpenES is nondiff.OpenES",
    )
