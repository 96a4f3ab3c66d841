"""What the README says can be done."""

import re
import shlex

from conftest import ROOT

from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import VARIANTS
from cunet_lib.workflow import sweep
from cunet_lib.workflow.parameters import check_parameters
from cunet_lib.workflow.stages import notebook_names

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_papermill_command_names_a_notebook_and_parameters_that_exist():
    command = re.search(r"^CUNET_RESULTS=.*papermill(.*\\\n.*)$", README, re.MULTILINE).group(1)
    words = shlex.split(command.replace("\\\n", " "))
    source = next(word for word in words if word.startswith("notebooks/"))
    given = {words[place + 1]: words[place + 2] for place, word in enumerate(words) if word == "-p"}
    checked = check_parameters(ROOT / source, given)
    load_profile("demo", checked["overrides"])
    assert checked["variant"] in VARIANTS


def test_sweep_command_is_a_valid_grid():
    profile, stage, grid = re.search(
        r'^make sweep PROFILE=(\w+) STAGE=(\w+) \\\n *GRID="(.*)"$', README, re.MULTILINE
    ).groups()
    assert len(sweep.plan(profile, stage, grid).runs) == 4


def test_every_notebook_and_profile_is_named():
    for name in notebook_names():
        assert f"`{name}`" in README
    for name in ("smoke", "demo", "musdb7s", "musdb18"):
        assert name in README


def test_pictures_and_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
