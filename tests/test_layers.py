"""The package is built in layers, as its docstring says, and every folder says what lies in it."""

import ast
import re
from pathlib import Path

import pytest

import clbench

ROOT = Path(clbench.__file__).parent
LAYERS = [re.findall(r"``([\w.]+)``", line) for line in re.findall(r"^(``.+?)  ", clbench.__doc__ or "", re.M)]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
FOLDERS = sorted(file.parent.relative_to(ROOT).as_posix() for file in ROOT.rglob("__init__.py"))


def modules() -> dict[str, Path]:
    """Modules within the package, ``training.trainer``, and their files."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in ROOT.rglob("*.py")}
    return {name: file for name, file in files.items() if not name.endswith("__init__")}


def part_of(module: str) -> str:
    """The longest name in the list of layers that a module falls under."""
    words = module.split(".")
    names = [".".join(words[:n]) for n in range(len(words), 0, -1)]
    return next(name for name in names if name in LAYER)


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of clbench that a file imports, wherever in it that is done."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clbench":
            names = [".".join([*node.module.split(".")[1:], alias.name]) for alias in node.names]
            found |= {name if name in known else node.module.partition(".")[2] for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("clbench.")}
    return found - {""}


def wrong_imports(known: dict[str, Path]) -> list[str]:
    wrong = []
    for name, file in known.items():
        for other in imported(file, known):
            own, its = part_of(name), part_of(other)
            if own != its and LAYER[its] >= LAYER[own]:
                wrong.append(f"{name} imports {other}")
    return wrong


def test_every_module_is_in_a_layer_and_every_layer_is_there():
    known = modules()
    assert {part_of(name) for name in known} == set(LAYER)
    folders = {file.parent.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py")}
    assert folders == set(FOLDERS)


def test_nothing_is_imported_from_a_layer_above():
    assert wrong_imports(modules()) == []


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("learning/base.py", "from clbench.training.trainer import Trainer", "learning.base imports training.trainer"),
        ("models/mlp.py", "def f():\n    from clbench.learning import base", "models.mlp imports learning.base"),
        ("data/store.py", "import clbench.run", "data.store imports run"),
        ("strategies/er.py", "from clbench.evaluation import metrics", "strategies.er imports evaluation.metrics"),
    ],
)
def test_an_import_from_above_is_found(file, line, said, tmp_path):
    """The check itself: at the top of a file, within a function, of a package's module, and of a layer beside."""
    copy = tmp_path / "copy.py"
    copy.write_text(line)
    known = modules()
    name = file.removesuffix(".py").replace("/", ".")
    assert wrong_imports({**known, name: copy}) == [said]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_lies_in_it(folder):
    """In a few lines; a file that it names is there, and none is left out, but in the folder with a file for every method."""
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(text.splitlines()) >= 3
    if folder == ".":
        return
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    files |= {path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()}
    named = set(re.findall(r"``(\w+)``", text)) - {"runs", "report"}  # which are sub-commands
    assert named <= files
    if folder != "strategies":
        assert named == files
