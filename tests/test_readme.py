"""What the README says can be done."""

import re
import shlex

from conftest import ROOT

from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import VARIANTS
from cunet_lib.workflow import sweep
from cunet_lib.workflow.parameters import check_parameters
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


def test_sweep_command_is_a_valid_grid():
    found = re.search(r'^make sweep PROFILE=(\w+) STAGE=(\w+) GRID="(.*)"$', README, re.MULTILINE)
    assert len(sweep.plan(*found.groups()).runs) == 4


def test_it_is_read_in_minutes():
    assert len(README.splitlines()) <= 150


def test_every_notebook_and_profile_is_named():
    for name in notebook_names():
        assert f"`{name}`" in README
    for name in ("smoke", "demo", "musdb7s", "musdb18"):
        assert name in README


def test_pictures_and_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
