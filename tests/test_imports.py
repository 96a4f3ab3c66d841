"""The module table of ``cunet_lib``: every module has a row, and imports keep to it."""

import ast
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, clean_environment, page_modules, stage_modules

import cunet_lib

LIBRARY = ROOT / "cunet_lib"


def table():
    """Rows of the docstring: ``{module: text of its last column}``, in order."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.*) \|$", cunet_lib.__doc__, re.MULTILINE)
    return dict(rows)


TABLE = table()
MODULES = list(TABLE)


def imported(path):
    """Every module that a file imports, anywhere in it, as dotted names."""
    return names_imported(ast.parse(path.read_text(encoding="utf-8")))


def names_imported(tree):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_library(names):
    """Modules of the library among dotted names."""
    found = {name.split(".")[1] for name in names if name.startswith("cunet_lib.")}
    return found & set(MODULES)


def is_of(name, package):
    return name == package or name.startswith(f"{package}.")


def forbidden(module):
    """What a module never imports, as top-level packages and library modules; or an allow list."""
    text = TABLE[module]
    names = re.findall(r"`(\w+)`", text)
    if text.startswith("all but"):
        return None, names
    if "every other module" in text:
        names += [other for other in MODULES if other != module]
    return names, None


def test_every_module_has_a_row_and_every_row_a_module():
    files = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"}
    assert set(MODULES) == files


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_rows_above(module):
    above = MODULES[: MODULES.index(module)]
    assert of_library(imported(LIBRARY / f"{module}.py")) - {module} <= set(above)


@pytest.mark.parametrize("module", MODULES)
def test_module_source_keeps_its_row(module):
    names = imported(LIBRARY / f"{module}.py")
    never, only = forbidden(module)
    if only is not None:
        outside = {
            name
            for name in names
            if name.split(".")[0] not in {*sys.stdlib_module_names, *only, "cunet_lib"}
        }
        assert outside == set()
        assert of_library(names) <= set(only)
        return
    for banned in never:
        if banned in MODULES:
            assert banned not in of_library(names)
        else:
            assert not any(is_of(name, banned) for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_imported_module_keeps_its_row(module):
    """What a module loads, through others too, is seen in a fresh interpreter."""
    never, only = forbidden(module)
    code = f"import sys, cunet_lib.{module}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    if only is not None:
        never = [*(set(MODULES) - {module, "quiet", *only}), "tensorflow", "pandas", "librosa"]
    for banned in never:
        if banned in MODULES and banned != "quiet":  # the package itself loads quiet
            assert f"cunet_lib.{banned}" not in loaded
        elif banned not in MODULES:
            assert banned not in loaded


def test_package_alone_loads_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import cunet_lib; "
        "print('\\n'.join(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded - {"cunet_lib"} <= set(sys.stdlib_module_names)


NOISE = """
import cunet_lib
import keras, numpy, tensorflow
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile("adam", "mse")
model.fit(numpy.zeros((8, 4), "f"), numpy.zeros((8, 2), "f"), verbose=0)
assert tensorflow.__spec__.loader is tensorflow.__loader__
"""


def test_tensorflow_starts_silently():
    environment = clean_environment()
    for name in list(environment):
        if name.startswith(("TF_", "GRPC_")):
            del environment[name]
    done = subprocess.run(
        [sys.executable, "-c", NOISE],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=180,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_failing_tensorflow_import_still_tells_why(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such instruction\\n')\nraise ImportError('broken')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import cunet_lib, tensorflow"],
        capture_output=True,
        text=True,
        env=clean_environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode != 0
    assert "no such instruction" in done.stderr and "broken" in done.stderr


def reached(names):
    """Library modules that are imported by ``names`` or by each other."""
    todo, found = of_library(names), set()
    while todo:
        module = todo.pop()
        found.add(module)
        todo |= of_library(imported(LIBRARY / f"{module}.py")) - found
    return found - {"quiet"}


@pytest.mark.parametrize("notebook", stage_modules())
def test_makefile_lists_the_modules_that_a_notebook_uses(notebook):
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    names = set()
    for cell in cells:
        if cell.cell_type == "code":
            names |= names_imported(ast.parse(cell.source))
    used = reached(names)
    assert stage_modules()[notebook] == [module for module in MODULES if module in used]


def test_makefile_lists_the_modules_that_the_report_uses():
    used = reached({"cunet_lib.report.webpage"})
    assert page_modules() == [module for module in MODULES if module in used]
