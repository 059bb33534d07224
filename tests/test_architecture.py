"""Rules of the house that no linter holds."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("chamtune", "commands", "serving", "studies", "objectives", "search_spaces", "tracking", "personalization")
SOURCES = [ROOT / "cli.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
LONG_FUNCTIONS = {"new_model", "train"}
"""The training script of the demo model reads from top to bottom."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_stay_small_and_say_what_they_are(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG_FUNCTIONS:
            assert node.end_lineno - node.lineno < 60, node.name
        if isinstance(node, ast.ImportFrom | ast.Import) and path.name != "cli.py":
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert "cli" not in names


def test_only_three_places_catch_everything():
    broad = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or getattr(node.type, "id", "") == "Exception")
    }
    assert broad == {"studies/trial.py", "personalization/backbones/loading.py", "cli.py"}


def test_every_library_that_is_imported_is_declared():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {_plain(re.match(r"[\w.-]+", line)[0]) for line in lines}
    own, makers = {"cli", *ROOMS}, packages_distributions()
    missing = {
        name
        for path in SOURCES
        for name in _imported(path) - own - sys.stdlib_module_names
        if not {_plain(maker) for maker in makers.get(name, [name])} & declared
    }
    assert missing == set()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _imported(path: Path) -> set[str]:
    """The first part of the name of each module that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in names | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_help_loads_no_heavy_library():
    code = (
        "import sys, runpy; sys.argv = ['chamtune', '--help']\n"
        "try: runpy.run_module('cli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'optuna', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_studies_load_no_torch_before_a_score_is_missing():
    code = "import sys, studies.verdict.promotion, studies.shown.display, objectives; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_make_clean_leaves_the_studies_and_their_evidence():
    said = subprocess.run(["make", "--dry-run", "clean"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "rm -rf" in said
    assert ".chamtune" not in said


@pytest.mark.parametrize(
    "name", ["runner", "trial", "storage", "samplers", "pruning", "workers", "lease", "recovery", "study"]
)
def test_the_loop_uses_what_optuna_promises(name):
    """No attribute of a foreign object that begins with an underscore; named tuples have public ones."""
    tree = ast.parse((ROOT / "studies" / f"{name}.py").read_text())
    private = {
        f"{ast.unparse(node.value)}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value) != "self"
        and not (node.attr.startswith("__") or node.attr == "_replace")
    }
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if "._" in f".{node.module}.{alias.name}" and node.module != "__future__"
    }
    assert private | imported == set()
