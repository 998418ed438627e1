"""The house rules that a program can check: import arrows, light start, nothing printed by the core."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import m2f_cli

PACKAGE = Path(m2f_cli.__file__).parent
# Each row may import the rows below it. Within one row of several, none imports another.
ROWS = [
    {"__main__", "__init__"},
    {"cli"},
    {"commands"},
    {"console"},
    {"workflows", "benchmark"},
    {"training", "export", "report", "cluster"},
    {"evaluation"},
    {"inference", "metrics", "dataset_tools"},
    {"model", "loss", "data", "weights"},
    {"ops", "results"},
    {"structures"},
    {"storage"},
    {"config"},
    {"runtime", "plugins"},
    {"errors", "version"},
]
HEIGHT = {name: len(ROWS) - i for i, row in enumerate(ROWS) for name in row}
HEAVY = ("torch", "numpy", "pydantic", "cv2", "PIL", "transformers", "huggingface_hub")
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS_FOLDER = Path(__file__).parent
TESTS = sorted(TESTS_FOLDER.rglob("*.py"))
OTHERS_OWN = ("_modules", "_repr_html_")  # names that PyTorch and IPython give


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int]]:
    """All modules that a file imports anywhere, absolute, with their lines; TYPE_CHECKING blocks are not imports."""
    tree = tree_of(path)
    package = ["m2f_cli", *path.relative_to(PACKAGE).parts[:-1]]
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    hints = {id(inner) for block in blocks for inner in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    unit = unit_of(path)
    assert unit in HEIGHT, f"{unit} has no row: add it to ROWS and to the design"
    for module, line in imports(path):
        if not module.startswith("m2f_cli"):
            continue
        parts = module.split(".")
        other = parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "__init__"
        allowed = other == unit or HEIGHT[other] < HEIGHT[unit]
        assert allowed, f"{path.name}:{line} imports {module}: {unit} may only import what lies below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_may_import_what(path):
    unit = unit_of(path)
    for module, line in imports(path):
        top = module.split(".")[0]
        where = f"{path.name}:{line}"
        assert top != "click", f"{where}: Typer no longer ships Click"
        if top in ("typer", "rich"):
            assert unit in ("cli", "console", "commands"), f"{where}: the core never prints"
        if top == "torch":
            light = ("cli", "console", "config", "plugins", "errors", "version", "__init__")
            assert unit not in light, f"{where}: must stay light"


def files_imported(path: Path) -> set[Path]:
    """The files of the package that a file imports, anywhere in it."""
    found = set()
    for module, _ in imports(path):
        names = module.split(".")[1:] if module.startswith("m2f_cli") else []
        for count in range(len(names), 0, -1):
            place = PACKAGE.joinpath(*names[:count])
            target = next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)
            if target is not None:
                found.add(target)
                break
    return found - {path}


def test_no_circle_of_files():
    """Also counts imports inside functions: they are for costs, never for a circle."""
    arrows = {path: files_imported(path) for path in SOURCES}
    assert sum(map(len, arrows.values())) > 500
    while True:  # take away, again and again, what imports nothing that is left
        done = {path for path, targets in arrows.items() if not targets & arrows.keys()}
        if not done:
            break
        arrows = {path: targets for path, targets in arrows.items() if path not in done}
    # What is left imports in a circle, or imports such a file.
    assert not arrows, sorted(str(path.relative_to(PACKAGE)) for path in arrows)


def test_load_stands_on_top_of_its_room():
    """Whatever stands around a segmenter is imported by `inference/load.py`, never the other way."""
    top = PACKAGE / "inference" / "load.py"
    assert top.is_file()
    assert not [path.name for path in SOURCES if unit_of(path) == "inference" and top in files_imported(path)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_by_string(path):
    """A name of code in a string climbs where an import may not: such names stand in the table alone."""
    if path.name in ("plugins.py", "cli.py"):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("plugins.load", "import_module")):
            literal = [each.value for each in node.args if isinstance(each, ast.Constant)]
            assert not [name for name in literal if str(name).startswith("m2f_cli")], f"{path.name}:{node.lineno}"


def test_no_room_is_too_large():
    """The largest has less than 15 % of the package; `inference` at most 25 files beside its engines."""
    lines = {path: path.read_text().count("\n") for path in SOURCES}
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        rooms[unit_of(path)] = rooms.get(unit_of(path), 0) + count
    assert max(rooms.values()) < 0.15 * sum(lines.values()), rooms
    own = [path for path in SOURCES if unit_of(path) == "inference" and path.parent.name != "engines"]
    assert len(own) <= 25


def test_no_class_name_has_two_meanings():
    """A class name, public or private, is defined in one file of the package."""
    places: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(str(path.relative_to(PACKAGE)))
    assert len(places) > 300
    assert not {name: sorted(files) for name, files in places.items() if len(files) > 1}


@pytest.mark.parametrize("path", [p for p in SOURCES if unit_of(p) == "commands"], ids=lambda p: p.name)
def test_commands_import_nothing_heavy_at_the_top(path):
    top_level = [n for n in tree_of(path).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in top_level:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        heavy = [name for name in names if name.split(".")[0] in (*HEAVY, "scipy")]
        assert not heavy, f"{path.name}: {heavy}"


@pytest.mark.parametrize("code", ["import m2f_cli", "from m2f_cli.cli import run; run(['--help'])"])
def test_help_imports_nothing_heavy(code):
    script = (
        f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []"), done.stdout[-500:]


def private_names(path: Path) -> list[str]:
    """What a test takes from the package although its name begins with an underscore."""
    tree = tree_of(path)
    imported = {"self", "cls"}  # of a test's own classes, and what comes from other packages
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            found += [each.name for each in node.names if module.startswith("m2f_cli") and is_private(each.name)]
            if not module.startswith("m2f_cli"):
                imported |= {(each.asname or each.name).split(".")[0] for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, (ast.Attribute, ast.Call)) and ast.unparse(root) != "super()":
                root = root.value if isinstance(root, ast.Attribute) else root.func
            if ast.unparse(root) not in {*imported, "super()"} and node.attr not in OTHERS_OWN:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "delattr", "getattr")):
            named = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            found += [f"{node.lineno}: {name}" for name in named if is_private(str(name).rpartition(".")[2])]
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(TESTS_FOLDER)))
def test_tests_use_public_names_and_no_clock(path):
    assert not private_names(path)
    clocks = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.time", "time.perf_counter", "time.monotonic", "time.process_time")
    ]
    assert not clocks, "a busy machine is slow: wait for something that happens, and leave the limit to pytest-timeout"
