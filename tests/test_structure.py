"""The import directions of docs/architecture.md, and what keeps the front door quick."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Folders at the top whose modules are imported as offramp.…
PACKAGES = ("models", "training", "server")
WEB = frozenset({"fastapi", "starlette", "pydantic", "prometheus_client", "uvicorn"})
HEAVY = WEB | {"torch", "numpy", "scipy", "PIL", "matplotlib", "tensorboard", "aiohttp"}


@dataclass(frozen=True)
class Rule:
    """The packages of this project that modules under `area` may import, and outside packages that they must not."""

    area: str
    allowed: tuple[str, ...]
    forbidden: frozenset[str] = frozenset()


# The first rule whose area contains a module holds for it.
RULES = (
    Rule(
        "offramp.server.engine.scheduler",
        allowed=("offramp.server.engine",),
        forbidden=WEB | {"torch", "time", "threading", "asyncio"},
    ),
    Rule("offramp.models", allowed=("offramp.models",), forbidden=WEB),
    Rule("offramp.training", allowed=("offramp.training", "offramp.models"), forbidden=WEB),
    Rule("offramp.server.engine", allowed=("offramp.server.engine", "offramp.models"), forbidden=WEB),
    Rule("offramp.server", allowed=("offramp.server", "offramp.models")),
    Rule("offramp", allowed=("offramp", "benchmarks.commands")),
    Rule("benchmarks", allowed=("benchmarks", "offramp.command", *(f"offramp.{name}" for name in PACKAGES))),
)


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int


def within(module: str, area: str) -> bool:
    return module == area or module.startswith(area + ".")


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return f"offramp.{name}" if parts[0] in PACKAGES else name


def sources(root: Path) -> dict[str, Path]:
    """Every module of the application under `root`, by dotted name; tests are not part of it."""
    folders = ("offramp", *PACKAGES, "benchmarks")
    return {module_name(path, root): path for folder in folders for path in sorted((root / folder).rglob("*.py"))}


def imported_names(node: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Dotted names that one statement imports; `from offramp import server` names offramp.server, a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            full_name = f"{node.module}.{alias.name}"
            yield full_name if full_name in modules else node.module


def imports(root: Path) -> Iterator[Import]:
    """Every import in the application, at any depth: in functions and under TYPE_CHECKING too."""
    modules = sources(root)
    for importer, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for imported in imported_names(node, modules):
                yield Import(importer, imported, getattr(node, "lineno", 0))


def violations(root: Path) -> list[str]:
    """One sentence for each import that goes against RULES."""
    sentences = []
    for item in imports(root):
        rule = next(rule for rule in RULES if within(item.importer, rule.area))
        top = item.imported.partition(".")[0]
        is_ours = top in (*PACKAGES, "offramp", "benchmarks", "tests")
        is_allowed = any(within(item.imported, area) for area in rule.allowed)
        if (is_ours and not is_allowed) or top in rule.forbidden:
            sentences.append(f"{item.importer}:{item.line} must not import {item.imported}")
    return sentences


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_imports_follow_the_architecture() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("models/heads.py", "import offramp.training.losses"),
        ("models/heads.py", "from offramp.server.engine import stats"),
        ("models/heads.py", "import pydantic"),
        ("training/trainer.py", "from offramp.server import settings"),
        ("training/trainer.py", "import benchmarks"),
        ("server/http/app.py", "def load():\n    import offramp.training"),
        ("server/http/app.py", "import offramp.cli"),
        ("server/engine/engine.py", "from offramp.server import settings"),
        ("server/engine/engine.py", "from offramp.server.settings import Settings"),
        ("server/engine/engine.py", "import prometheus_client.core"),
        ("server/engine/runners/torch_runner.py", "from starlette.responses import Response"),
        ("server/engine/scheduler.py", "import torch"),
        ("server/engine/scheduler.py", "from time import monotonic"),
        ("benchmarks/tables.py", "import offramp.cli"),
        ("offramp/cli.py", "from tests import conftest"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, statement: str) -> None:
    plant(tmp_path, {"server/settings.py": "", "server/engine/stats.py": "", file: statement})
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("training/trainer.py", "from offramp.models import config"),
        ("server/http/app.py", "from offramp.server import engine, settings\nimport fastapi"),
        (
            "server/engine/engine.py",
            "from offramp.server.engine import stats\nimport offramp.models.bundle\nimport time",
        ),
        ("offramp/cli.py", "def serve():\n    from offramp.server import settings"),
    ],
)
def test_an_allowed_import_is_left_alone(tmp_path: Path, file: str, statement: str) -> None:
    plant(tmp_path, {"server/settings.py": "", "server/engine/__init__.py": "", file: statement})
    assert violations(tmp_path) == []


def test_every_folder_with_code_is_a_package_and_so_reaches_the_wheel() -> None:
    folders = {path.parent for package in (*PACKAGES, "benchmarks") for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_every_folder_of_the_packages_is_in_the_wheel() -> None:
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert setuptools["packages"] == ["offramp", *sorted(".".join(("offramp", *folder.parts)) for folder in folders)]


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty_words = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert [name for name in sources(ROOT) if empty_words & set(name.split("."))] == []


def test_importing_the_front_door_loads_nothing_heavy() -> None:
    code = "import json, sys, offramp.cli; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert HEAVY & set(json.loads(result.stdout)) == set()


def test_every_direct_dependency_is_pinned() -> None:
    def canonical(requirement: str) -> str:
        name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line) for line in lines if "==" in line and not line.startswith("#")}
    wanted = {canonical(name) for name in [*project["dependencies"], *extras]}
    assert wanted - pinned - {"offramp"} == set()


def test_the_ways_in_the_architecture_name_files_and_functions_that_exist() -> None:
    rows = re.findall(r"^\| \d+\. [^|]+ \| `([^|]+)` \| `([^|]+)` \|$", ARCHITECTURE, re.MULTILINE)
    assert len(rows) == 20
    for files, names in (tuple(cell.split("`, `") for cell in row) for row in rows):
        defined = {file: definitions(ROOT / file) for file in files}
        assert [name for name in names if name not in set().union(*defined.values())] == []
        assert [file for file in files if defined[file].isdisjoint(names)] == []


def test_every_path_in_the_architecture_exists() -> None:
    paths = set(re.findall(r"`((?:models|server|training|benchmarks|offramp|tests)/[\w./]*)`", ARCHITECTURE))
    assert len(paths) > 30
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def definitions(path: Path) -> set[str]:
    """Names of all functions and classes of a module; methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            functions = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {node.name, *(f"{node.name}.{function.name}" for function in functions)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names
