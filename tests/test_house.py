"""The house, read off its sources: who may import whom, how long files and lines are, and what functions take."""
import ast
import functools
import graphlib
from pathlib import Path

import pytest
from builders import ROOT

# From left to right; a folder imports what stands to its left, and its own rank where that makes no circle.
RANKS = [("inputs", "options", "light", "processes", "cli", "plots"), ("data", "models", "language"), ("runs",),
         ("decompose",), ("analysis",), ("report",), ("explore",)]
RANK = {folder: rank for rank, folders in enumerate(RANKS) for folder in folders}
UTILS = sorted((ROOT / "utils").rglob("*.py"))
SCRIPTS = [*sorted(ROOT.glob("*.py")), *(path for place in ("scripts", "models", "data")
                                         for path in sorted((ROOT / place).rglob("*.py")))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def named(path: Path) -> str:
    """A file as it is imported: utils.runs.files, and utils.runs for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {named(path): path for path in UTILS}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> set[str]:
    """All modules that a file imports, those inside functions too; of `from a import b` both a.b and a."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


# What each module of utils imports of utils; a package's own __init__ holds nothing but a sentence.
GRAPH = {module: {name for name in imports(path) if name in MODULES and MODULES[name].name != "__init__.py"}
         for module, path in MODULES.items()}


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer == "ex2":
        return RANK[imported] <= RANK["decompose"]
    return importer != "plots" and imported != "ex2" and RANK[imported] <= RANK[importer]


def test_every_folder_has_its_rank():
    assert {folder(module) for module in MODULES} - {""} <= {*RANK, "ex2"}


@pytest.mark.parametrize("importer", sorted({folder(module) for module in MODULES} - {""}))
def test_folders_import_what_stands_to_their_left(importer):
    wrong = [f"{module} imports {other}" for module, others in GRAPH.items() if folder(module) == importer
             for other in others if not allowed(importer, folder(other))]
    assert wrong == []


@pytest.mark.parametrize("name", [named, folder])
def test_there_is_no_circle(name):
    between = {}
    for module, others in GRAPH.items():
        key = module if name is named else folder(module)
        between.setdefault(key, set()).update({other if name is named else folder(other) for other in others} - {key})
    graphlib.TopologicalSorter(between).prepare()  # raises CycleError, with the circle


def test_scripts_are_in_no_circle():
    own = {named(path): path for path in SCRIPTS}
    between = {module: {name for name in imports(path) if name in own} - {module} for module, path in own.items()}
    graphlib.TopologicalSorter(between).prepare()


def test_no_file_of_utils_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")} - {"inspect"} | {"scripts", "models", "data", "tests"}
    assert [f"{module} imports {name}" for module, path in MODULES.items() for name in imports(path)
            if name.partition(".")[0] in scripts] == []
    assert [module for module, path in MODULES.items() if "inspect_script" in path.read_text(encoding="utf-8")] == []


def test_no_file_of_utils_has_more_than_420_lines():
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in UTILS}
    assert {module: length for module, length in lengths.items() if length > 420} == {}


def test_no_line_has_more_than_120_characters():
    long = [f"{path.relative_to(ROOT)}:{number}" for path in (*UTILS, *SCRIPTS, *TESTS)
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1) if len(line) > 120]
    assert long == []


def test_no_module_of_tests_imports_another():
    assert [f"{path.name} imports {name}" for path in TESTS for name in imports(path)
            if name.startswith(("test_", "conftest", "tests."))] == []


def test_no_function_of_utils_takes_the_arguments_of_the_command_line():
    found = []
    for module, path in MODULES.items():
        # The command line itself; callbacks with TRL's and torch's signatures.
        if module in ("utils.cli", "utils.ex2.training", "utils.decompose.recorder"):
            continue
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                given = node.args
                names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                found += [f"{module}:{node.lineno}"] if "args" in names else []
    assert found == []
