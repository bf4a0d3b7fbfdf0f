"""The house of docs and README: arrows point down only, and every file is in a wing."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = {"common": 0, "scans": 1, "perceiver": 1, "dataset": 2, "evaluation": 3, "training": 4}
LEVELS |= {"train": 5, "predict": 5}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("[!.]*.py")
    if not path.relative_to(ROOT).parts[0].startswith((".", "tests", "benchmarks", "notebooks"))
    and "site-packages" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(node: ast.AST) -> set[str]:
    """Modules of this project that are imported at any place, but not for type checkers alone."""
    found = set()
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return found.union(*map(imports, node.orelse))
    if isinstance(node, ast.Import):
        found = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "relative imports hide where they lead"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        found = (names & FILES.keys()) | ({node.module} if names - FILES.keys() else set())
    found = {name for name in found if name.split(".")[0] in LEVELS}
    return found.union(*map(imports, ast.iter_child_nodes(node)))


IMPORTED = {name: imports(tree) for name, tree in TREES.items()}


def test_every_file_is_in_a_wing():
    assert not [name for name in FILES if name.split(".")[0] not in LEVELS]


def test_no_arrow_points_up_or_to_the_side():
    arrows = [(a, b) for a, found in IMPORTED.items() for b in found]
    wings = [(a, b, a.split(".")[0], b.split(".")[0]) for a, b in arrows]
    assert not [(a, b) for a, b, x, y in wings if x != y and LEVELS[x] <= LEVELS[y]]
    assert not IMPORTED["perceiver"] and len(arrows) > 50


def test_no_circle_within_a_wing():
    left = {name: set(found) for name, found in IMPORTED.items()}
    while free := [name for name, found in left.items() if not found & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "these import each other"


def test_no_function_is_longer_than_85_lines():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert not [
        f"{name}.{node.name}: {lines} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, functions) and (lines := node.end_lineno - node.lineno + 1) > 85
    ]


def test_programs_start_without_what_only_draws():
    code = "import sys, train, predict, dataset; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
