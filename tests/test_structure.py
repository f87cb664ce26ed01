"""The rules of the house that no single room can check: floors, dependencies, size, and safe file formats.

Everything here reads the sources and runs no model, so it passes while rooms are still empty.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from libmoe.eval.vlm.packages import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "libmoe"
MAX_LINES = 400

# Rooms at the bottom and all they may import besides the standard library and each other.
FOUNDATIONS = {
    "core": {"torch", "numpy"},
    "stats": {"numpy", "scipy"},
    "ops": {"torch", "numpy", "triton"},  # the fast kernels are Triton source, imported where a GPU runs them
}
HEAVY = ("transformers", "datasets", "lm_eval", "matplotlib", "pyarrow", "peft", "accelerate", "typer")

# Reading one of these runs code from the file; weights are safetensors and tables are JSON or parquet.
PICKLING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.load", "torch.save", "torch.jit.load"}
PICKLING_METHODS = ("read_pickle", "to_pickle")

# Spelled in two halves, or this file would be its own finding.
FOREIGN_WORDS = {
    r"(?<![\w.*~-])/work" + r"/": "a path of one machine",
    r"(?<![\w.])/(?:home|Users)" + r"/\w": "a path of one machine",
    r"\.\./sh" + r"ared\b": "a folder outside the repository",
    r"\bpypi" + r"\.org\b|\bdownload\.pytorch" + r"\.org\b": "a package host, which the user's pip chooses",
}


def python_files(*rooms: str) -> list[Path]:
    folders = [SRC / room for room in rooms] if rooms else [SRC]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Full names of the modules a file imports anywhere in it, relative imports left out."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node


def third_party(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    for name, node in imports(path):
        top = name.partition(".")[0]
        if top != "libmoe" and top not in sys.stdlib_module_names:
            yield top, node


def git(*arguments: str) -> list[str] | None:
    """What a git command lists, or None where there is no repository (an unpacked source archive)."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [entry for entry in done.stdout.split("\0") if entry]


def project_files() -> list[Path]:
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is None:
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": search}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def report(headline: str, findings: list[str]) -> str:
    return "\n  ".join([headline, *findings])


def test_imports_only_go_down() -> None:
    check = "lint_imports(no_cache=True, no_logo=True)"
    done = python("-c", f"import sys; from importlinter.cli import lint_imports; sys.exit({check})")
    assert done.returncode == 0, (
        "a room imports one that it must not know (contracts: pyproject.toml, tool.importlinter)\n"
        + done.stdout
        + done.stderr
    )


@pytest.mark.parametrize("room", FOUNDATIONS)
def test_foundations_import_only_torch_and_numpy(room: str) -> None:
    allowed = FOUNDATIONS[room]
    findings = [
        f"{where(path, node)} imports {name}"
        for path in python_files(room)
        for name, node in third_party(path)
        if name not in allowed
    ]
    assert not findings, report(f"libmoe.{room} may import {', '.join(sorted(allowed))} only:", findings)


def test_every_third_party_import_is_declared() -> None:
    """A module that only comes along with another package disappears when that package drops it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + [
        requirement
        for name, extra in project["optional-dependencies"].items()
        if name != "dev"
        for requirement in extra
    ]
    declared = {normalised(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    # What runs in the environment of lmms-eval may use what that environment holds.
    elsewhere = {normalised(re.match(r"[\w.-]+", requirement)[0]) for requirement in PACKAGES}
    providers = packages_distributions()
    findings = [
        f"{where(path, node)} imports {top}"
        for path in python_files()
        for top, node in third_party(path)
        if (declared | elsewhere if "vlm" in path.parts else declared).isdisjoint(
            normalised(name) for name in [*providers.get(top, []), top]
        )
    ]
    assert not findings, report("declare in pyproject.toml, in the core or in an extra:", findings)


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_no_file_outgrows_one_idea() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files()
        if SRC / "ops" not in path.parents
    }
    findings = [
        f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES
    ]
    assert not findings, report(f"one idea a file, at most {MAX_LINES} lines; split these:", findings)


def test_the_project_speaks_of_itself_alone() -> None:
    findings = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            findings += [
                f"{path.relative_to(ROOT)}:{number}: {meaning}"
                for word, meaning in FOREIGN_WORDS.items()
                if re.search(word, line)
            ]
    assert not findings, report("these lines only make sense where they were written:", findings)


def test_importing_libmoe_is_light() -> None:
    done = python("-c", f"import sys, libmoe; print(*[name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, "import libmoe fails:\n" + done.stderr
    assert not done.stdout.split(), (
        f"import libmoe also imports {done.stdout.strip()}; import these inside the functions that need them"
    )


def test_nothing_is_pickled() -> None:
    findings = [
        f"{where(path, node)} imports {name}"
        for path in python_files()
        for name, node in imports(path)
        if name.partition(".")[0] in PICKLING_MODULES
    ]
    findings += [
        f"{where(path, node)} calls {name}"
        for path in python_files()
        for name, node in pickling_calls(parse(path))
    ]
    assert not findings, report("reading a pickle runs code; use safetensors, JSON or parquet:", findings)


def pickling_calls(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Calls that read or write pickles, under whatever name they were imported."""
    origin = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            origin.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = ast.unparse(node.func).partition(".")
        name = origin.get(head, head) + dot + rest
        if name in PICKLING_CALLS or name.endswith(PICKLING_METHODS):
            yield name, node
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                yield f"{name} with allow_pickle", node


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')",
        "import torch as t; t.save({}, 'x')",
        "from torch import load as read; read('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "frame.to_pickle('x')",
    ],
)
def test_the_search_for_pickles_finds_them(source: str) -> None:
    assert list(pickling_calls(ast.parse(source)))


def test_every_file_of_the_package_ships() -> None:
    """The wheel leaves out what .gitignore names, committed by force or not."""
    ignored = git("ls-files", "-z", "--cached", "--others", "--ignored", "--exclude-standard", "--", "src")
    findings = [name for name in ignored or [] if "__pycache__" not in name]
    assert not findings, report("ignored by .gitignore and so missing from the wheel:", findings)
    assert (SRC / "py.typed").exists(), "src/libmoe/py.typed is missing: type checkers would ignore our hints"
