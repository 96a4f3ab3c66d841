"""Conventions of the source notebooks: no outputs, parameters first, short cells, prose."""

import ast
import statistics

import nbformat
import papermill
import pytest
from conftest import ROOT, code_of

from cunet_lib.workflow.parameters import notebook_parameters

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def test_source_is_valid_carries_no_output_and_takes_the_study_s_kernel(notebook):
    nbformat.validate(notebook)
    for cell in code_of(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source
        assert "papermill" not in cell.metadata and "execution" not in cell.metadata
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "cunet"
    assert notebook.metadata.kernelspec.language == "python"


def test_one_parameters_cell_of_plain_scalars(notebook):
    cell, *others = code_of(notebook)
    assert "parameters" in cell.metadata["tags"], "parameters come before any other code"
    assert not any("parameters" in other.metadata.get("tags", []) for other in others)
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        values[target.id] = ast.literal_eval(statement.value)
    assert all(type(value) in (str, int, float, bool) for value in values.values()), values
    assert values["profile"] == "demo" and values["overrides"] == ""


def test_papermill_itself_sees_every_parameter(path):
    """Its command line warns of an unknown parameter otherwise; ``=`` in a comment confuses it."""
    assert list(papermill.inspect_notebook(path)) == list(notebook_parameters(path))


def test_profile_is_loaded_at_once(notebook):
    """A wrong parameter fails in the first cell that computes, not after minutes."""
    source = code_of(notebook)[1].source
    assert "check_injected()\nsettings = load_profile(profile, overrides)" in source


def test_nothing_is_defined_in_a_notebook(notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_of(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, kinds), cell.source


def test_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_of(notebook)]
    assert min(lengths) >= 1, "an empty cell"
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 20


def test_prose_comes_before_each_block_of_code(notebook):
    """No more than four code cells follow each other without a word, after the parameters."""
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    run = 0
    for cell in notebook.cells:
        begun = cell.cell_type == "code" and "check_injected()" not in cell.source
        run = run + 1 if begun else 0
        assert run <= 4, cell.source
        assert cell.source.strip()


def test_no_magic_no_machine_paths_and_no_files_of_the_working_folder(notebook):
    for cell in notebook.cells:
        for word in ("/home/", "/Users/", "C:\\", str(ROOT)):
            assert word not in cell.source
        if cell.cell_type == "code":
            assert not cell.source.lstrip().startswith(("%", "!"))
            assert not any(word in cell.source for word in ("Path(", "open(", "../"))
