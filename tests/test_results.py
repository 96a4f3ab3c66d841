"""The committed results of the demo hold what the study promises of them."""

import pandas as pd
from conftest import ROOT

from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.separation import catalog

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


def test_every_median_reaches_the_bounds_of_the_study():
    outcome = pd.read_csv(DEMO / "tables" / "outcome.csv")
    assert len(outcome) == len(INSTRUMENTS) * (1 + len(VARIANTS))
    score = outcome["sdr_v4_median_db"]
    assert (score >= 2).all() and (score < outcome["ideal_sdr_v4_median_db"]).all()
    assert (score - outcome["mixture_sdr_v4_median_db"] >= 5).all()


def test_shipped_model_is_small():
    models = list((DEMO / "models").glob("*.keras"))
    assert [path.stem for path in models] == [load_profile("demo").shipped]
    assert models[0].stat().st_size <= 6_000_000


def test_shipped_model_has_its_card():
    card = DEMO / "models" / catalog.CARD
    facts = catalog.read_card(card)
    assert facts["file"] == f"{load_profile('demo').shipped}.keras"
    assert facts["settings"]["signal"] == load_profile("demo").signal.model_dump(mode="json")
    text = card.read_text(encoding="utf-8")
    assert all(f"| {instrument} |" in text for instrument in INSTRUMENTS)
