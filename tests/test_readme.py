"""What the README says can be done."""

import re
import shlex

from conftest import ROOT

from cunet_lib import cli
from cunet_lib.core.settings import load_profile, profile_names
from cunet_lib.core.systems import VARIANTS
from cunet_lib.workflow import sweep
from cunet_lib.workflow.parameters import check_parameters, notebook_parameters
from cunet_lib.workflow.stages import notebook_names, parse_stage

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_name_notebooks_and_parameters_that_exist():
    words = shlex.split(re.search(r"papermill (.*)$", README, re.MULTILINE)[1])
    source = next(word for word in words if word.startswith("notebooks/"))
    given = {words[place + 1]: words[place + 2] for place, word in enumerate(words) if word == "-p"}
    assert check_parameters(ROOT / source, given)["variant"] in VARIANTS
    stage, overrides = re.search(
        r'cunet run (\S+) --overrides "(.*)"$', README, re.MULTILINE
    ).groups()
    assert parse_stage(stage).parameters["variant"] in VARIANTS
    load_profile("demo", overrides)


def test_the_command_knows_every_option_that_is_given():
    lines = re.findall(r"^\.venv/bin/cunet (.*)$", README, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        cli._parser().parse_args(shlex.split(line, comments=True))


def test_sweep_command_is_a_valid_grid():
    found = re.search(r'^make sweep PROFILE=(\w+) STAGE=(\w+) GRID="(.*)"$', README, re.MULTILINE)
    assert len(sweep.plan(*found.groups()).runs) == 4


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 150


def test_every_notebook_is_named_with_its_parameters():
    lines = [line.strip("|").split("|") for line in README.splitlines() if line[:4] == "| `0"]
    rows = [[re.findall(r"`(\w+)`", cell) for cell in line] for line in lines]
    assert [name for names, *_ in rows for name in names] == notebook_names()
    for names, _, parameters in rows:
        for name in names:
            known = notebook_parameters(ROOT / "notebooks" / f"{name}.ipynb")
            assert [*known] == ["profile", "overrides", *parameters], name


def test_every_profile_is_named():
    """In README.md, and those that repeat the study where their results are told."""
    text = README + (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in profile_names():
        assert re.search(rf"\b{name}\b", text), name


def test_pictures_and_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
