"""Published scores: the file, its checks, and which of them stand beside ours."""

import numpy as np
import pandas as pd
import pytest
from test_scores import score_rows

from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import published
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4, Measure
from cunet_lib.report import tables

MUSDB = load_profile("musdb18")
V3 = (
    "bss_eval_sources v3, whole track, 2 sources (target, accompaniment), 8192 Hz mono, "
    "MUSDB18 test tracks"
)
V4 = (
    "museval BSSEval v4, median over 1 s frames then median over MUSDB18 test tracks, "
    "44.1 kHz stereo"
)
COLUMNS = ("system", "study", "metric", "target", *published.VALUES, "protocol", "source")
# No system of the study: made-up numbers, for tests alone.
ROW = dict(
    zip(
        COLUMNS,
        ("C-U-Net-Test", "Nobody 2000", "SDR", "vocals", "1.25", "0.5", "", V3, "a test, table 0"),
        strict=True,
    )
)


def write(path, *rows):
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
    return path


def scores():
    return pd.concat([score_rows(model, lambda *_: 1.0) for model in ("unet", "dense_simple")])


# ------------------------------------------------------------------------------ the file


def test_the_projects_file_is_sound():
    frame = published.load_published()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) > 50 and not frame.duplicated([*COLUMNS[:4], "protocol"]).any()
    assert (frame[["system", "study", "source"]].map(str.strip) != "").all(axis=None)
    assert set(frame["metric"]) <= set(SDR_V4.entry.headings)
    assert set(frame["target"]) == {*INSTRUMENTS, "overall"}
    assert frame[["mean_db", "median_db"]].notna().any(axis=1).all()
    assert np.isfinite(frame[["mean_db", "std_db", "median_db"]].dropna()).all(axis=None)


# ------------------------------------------------------------------------------ beside ours


def test_ours_stand_below_scores_of_equal_protocol_alone(tmp_path, monkeypatch):
    path = write(tmp_path / "scores.csv", ROW, {**ROW, "protocol": V4})
    monkeypatch.setattr(published.load_published, "__defaults__", (path,))
    whole = scores().assign(protocol="BSS Eval v3", aggregation="whole track")
    table = tables.published_table(MUSDB, pd.concat([scores(), whole])).save(tmp_path)
    frame = table.frame
    theirs = frame[frame["study"] == "Nobody 2000"]
    assert theirs[["protocol", "equal_protocol"]].to_numpy().tolist() == [[V3, True], [V4, False]]
    ours = frame[frame["study"] == "this run"]
    assert set(ours["protocol"]) == {V3} and ours["equal_protocol"].all()
    assert set(ours["system"]) == {"Dedicated U-Nets", "C-U-Net dense, simple"}
    assert set(ours["target"]) == {*INSTRUMENTS, "overall"}
    assert ours["mean_db"].notna().all()
    assert "this run" in (tmp_path / "published.md").read_text()


@pytest.mark.parametrize(
    "override", ["signal.sample_rate=10880", "data.source=rendered", "data.source=folder"]
)
def test_another_rate_or_rendered_music_keeps_them_apart(override):
    settings = load_profile("musdb18", [override, "data.validation=1"])
    assert published.our_protocol(settings, SDR_V3) != V3


def test_other_evaluations_and_aggregations_keep_them_apart():
    assert published.our_protocol(MUSDB, SDR_V3) == V3
    for evaluation, aggregation in (
        ("BSS Eval v3", "median over frames"),
        ("BSS Eval v4", "whole track"),
        ("another", "whole track"),
    ):
        assert published.our_protocol(MUSDB, Measure("SDR", evaluation, aggregation)) is None


def test_framing_rate_and_channels_are_compared_too():
    words = set(published.load_published()["protocol"])
    assert V4 in words
    same = load_profile("musdb18", "signal.sample_rate=44100")
    assert published.our_protocol(same, SDR_V4) == V4.replace("stereo", "mono")
    for other in ("window_seconds=2", "hop_seconds=0.5"):
        settings = load_profile("musdb18", f"signal.sample_rate=44100 evaluate.{other}")
        assert published.our_protocol(settings, SDR_V4) != V4.replace("stereo", "mono")


def test_the_list_of_published_scores_spells_every_protocol_out(tmp_path):
    table = tables.published_table(MUSDB, scores()).save(tmp_path)
    assert len(table.frame) == len(published.load_published())
    assert set(table.display["Protocol"]) == set(published.load_published()["protocol"])
    assert set(table.display["Equal to ours"]) == {"no"}
    assert "8192 Hz mono" in table.caption
