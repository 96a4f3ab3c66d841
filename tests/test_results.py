"""The committed results hold what is said of them; README.md says what those of `study` say."""

import pandas as pd
import pytest
from conftest import ROOT

from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.report import page
from cunet_lib.report.records import Table
from cunet_lib.separation import catalog

DEMO, STUDY, BEYOND = (ROOT / "results" / name for name in ("demo", "study", "beyond"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(name):
    """A committed table, as far as its CSV and caption hold it."""
    place = STUDY / "tables" / name
    caption = place.with_suffix(".md").read_text(encoding="utf-8").split("\n")[0]
    return Table(name, pd.read_csv(f"{place}.csv"), None, caption)


def blocks():
    """What README.md says of the committed results: scores, the answer, and what others found."""
    lines = (STUDY / "tables" / "scores_overall.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line[:1] == "|"]
    rows = [f"| {row[1]} | {' | '.join(row[2:4])} |" for row in cells]
    assert rows[0] == "| Model | SDR v4, dB | SDR v3, dB |"
    rows[1] = "|---|---:|---:|"
    shown = map(table, ("differences", "training", "models"))
    answer = page.answer(load_profile("study"), *shown).data
    return "\n".join(rows), answer, page.others().data


def test_readme_says_what_the_committed_results_say():
    """``python tests/test_results.py`` prints the blocks, to be pasted into README.md."""
    for block in blocks():
        assert block in README, f"README.md lacks:\n\n{block}"


def test_readme_says_what_the_study_had_and_how_its_reruns_came_out():
    said, study = " ".join(README.split()), load_profile("study")
    data, trained = study.data, len(study.runs)
    songs = f"{data.train_tracks - data.validation} training songs, {data.test_tracks} test songs"
    assert f"{songs}, and {trained} trainings" in said
    for name, verdicts, words in (
        ("study_float32", "10 of 10", "In float32 ten of ten verdicts stayed"),
        ("study_wide", "9 of 10", "at the paper's width nine of ten stayed"),
    ):
        again = ROOT / "results" / name / "tables" / "again.md"
        assert f"{verdicts} verdicts" in again.read_text(encoding="utf-8") and words in said
    again = pd.read_csv(ROOT / "results" / "study_float32" / "tables" / "again.csv")
    assert (again["shift_db"] > 0.3).sum() == 2
    assert "two medians moved by more than 0.3 dB" in said


def test_every_median_reaches_the_bounds_of_the_study():
    scores = pd.read_csv(DEMO / "tables" / "scores_by_instrument.csv")
    medians = scores.pivot_table(index="target", columns="model", values="sdr_v4_median_db")
    low, high = (medians.pop(name) for name in ("mixture", "ideal_ratio_mask"))
    assert medians.shape == (len(INSTRUMENTS), len(load_profile("demo").seeds))
    # Silence scores about 0 dB: more than the mixture is not enough.
    assert (medians >= 2).all(axis=None) and medians.lt(high, axis=0).all(axis=None)
    assert medians.sub(low, axis=0).ge(5).all(axis=None)


@pytest.mark.parametrize("folder", [DEMO, STUDY, BEYOND])
def test_shipped_model_is_small(folder):
    models = list((folder / "models").glob("*.keras"))
    assert [path.stem for path in models] == [load_profile(folder.name).shipped]
    assert models[0].stat().st_size <= 16_000_000


def test_the_model_that_separates_songs_is_the_best_that_ships(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path))
    found = catalog.find()
    assert f"`{found.name}`" in README and found.name == "beyond/shares"
    assert len(found.separate.pitches) == 2  # beside the song's own: README says three


@pytest.mark.parametrize("folder", [DEMO, STUDY, BEYOND])
def test_shipped_model_has_its_card(folder):
    card, settings = folder / "models" / catalog.CARD, load_profile(folder.name)
    facts = catalog.read_card(card)
    assert facts["file"] == f"{settings.shipped}.keras"
    assert facts["settings"]["signal"] == settings.signal.model_dump(mode="json")
    text = card.read_text(encoding="utf-8")
    assert all(f"| {instrument} |" in text for instrument in INSTRUMENTS)


if __name__ == "__main__":
    print("\n\n".join(blocks()))
