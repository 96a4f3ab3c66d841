"""What the README promises, and the committed results, hold."""

import re
import shlex

import pandas as pd
import pytest
from conftest import ROOT

from cunet_lib.config import INSTRUMENTS, VARIANTS, load_profile
from cunet_lib.runner import check_parameters, notebook_names

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "results" / "demo"


def test_papermill_command_names_a_notebook_and_parameters_that_exist():
    command = re.search(r"^CUNET_RESULTS=.*papermill(.*\\\n.*)$", README, re.MULTILINE).group(1)
    words = shlex.split(command.replace("\\\n", " "))
    source = next(word for word in words if word.startswith("notebooks/"))
    given = {words[place + 1]: words[place + 2] for place, word in enumerate(words) if word == "-p"}
    checked = check_parameters(ROOT / source, given)
    load_profile("demo", checked["overrides"])
    assert checked["variant"] in VARIANTS


def test_every_notebook_and_profile_is_named():
    for name in notebook_names():
        assert f"`{name}`" in README
    for name in ("smoke", "demo", "musdb18"):
        assert name in README


def test_pictures_and_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_score_table_is_the_committed_one():
    table = (DEMO / "tables" / "scores_overall.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) >= 9
    for row in rows:
        assert row in README


def test_shipped_model_is_small():
    models = list((DEMO / "models").glob("*.keras"))
    assert [path.stem for path in models] == [load_profile("demo").shipped]
    assert models[0].stat().st_size <= 6_000_000


@pytest.mark.parametrize("system", ["unet", *VARIANTS])
def test_committed_scores_are_between_their_bounds(system):
    scores = pd.read_csv(DEMO / "scores" / "scores.csv")
    sdr = scores.query("metric == 'SDR' and aggregation == 'median over frames'")
    median = sdr.pivot_table(index="target", columns="model", values="value", aggfunc="median")
    for instrument in INSTRUMENTS:
        reached = median.loc[instrument, system]
        assert reached >= median.loc[instrument, "mixture"] + 5, instrument
        assert reached >= 2, instrument
        assert reached <= median.loc[instrument, "ideal_ratio_mask"], instrument
