"""The committed results of the demo hold what the study promises of them."""

import pandas as pd
import pytest
from conftest import ROOT

from cunet_lib.analysis import check_outcome
from cunet_lib.config import INSTRUMENTS, VARIANTS, load_profile

DEMO = ROOT / "results" / "demo"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def markdown_rows(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith(":-")]


def test_score_table_of_the_readme_is_the_committed_one():
    header, *rows = markdown_rows(DEMO / "tables" / "scores_overall.md")
    chosen = [header.index(name) for name in ("Model", "SDR v4, dB", "SDR v3, dB")]
    assert len(rows) == 7
    for row in (header, *rows):
        assert f"| {' | '.join(row[place] for place in chosen)} |" in README


def test_shipped_model_is_small():
    models = list((DEMO / "models").glob("*.keras"))
    assert [path.stem for path in models] == [load_profile("demo").shipped]
    assert models[0].stat().st_size <= 6_000_000


@pytest.mark.parametrize("system", ["unet", *VARIANTS])
def test_committed_scores_are_between_their_bounds(system):
    """Above the mixture by 5 dB, above 2 dB (silence scores 0), not above the ideal mask."""
    outcome = check_outcome(pd.read_csv(DEMO / "scores" / "scores.csv"))
    reached = outcome[outcome["model"] == system].set_index("target")["passed"]
    assert dict(reached) == dict.fromkeys(INSTRUMENTS, True)
