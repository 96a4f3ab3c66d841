"""Scored test tracks: museval's values, oracles, what is skipped and what is not."""

import numpy as np
import pandas as pd
import pytest

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS, ORACLES
from cunet_lib.evaluation import evaluate
from cunet_lib.evaluation.metrics import METRICS, SCORE_COLUMNS, SDR_V3, SDR_V4, as_pcm, track_rows
from cunet_lib.signal.audio import ensure_ffmpeg


class Shares:
    """A system that gives each instrument a share of the mixture; the shapes of what it got."""

    def __init__(self, *shares):
        self.shares = np.array(shares)[:, None]
        self.version = str(shares)
        self.seen = []

    def __call__(self, mixture):
        self.seen.append(mixture.shape)
        return self.shares * mixture


@pytest.fixture(scope="module")
def oracle_scores(tones):
    settings, store = tones
    call = {"seed": 0, "workers": 1}
    systems = [evaluate.Oracle(name, settings.signal) for name in ORACLES]
    return pd.concat(
        evaluate.score_system(settings, store, model=each.name, system=each, **call)
        for each in systems
    )


def quick(*signals):
    return track_rows(*signals, metrics=METRICS[2:4])


@pytest.fixture
def score(tones):
    """Score a system, by quick metrics, under its own name; twice is the second time from files."""
    settings, store = tones

    def run(model, system):
        call = {"model": model, "seed": 0, "system": system, "workers": 1, "score": quick}
        return evaluate.score_system(settings, store, **call)

    return run


def test_table_has_a_row_for_everything(tones, oracle_scores):
    tracks = 2 * len(tones[1].split("test"))
    assert tuple(oracle_scores) == SCORE_COLUMNS
    assert set(oracle_scores["protocol"]) == {entry.protocol for entry in METRICS}
    assert not oracle_scores.duplicated(list(SCORE_COLUMNS[:7])).any()
    v4, v3 = SDR_V4.rows(oracle_scores), SDR_V3.rows(oracle_scores)
    assert len(v4) == len(v3) == tracks * len(INSTRUMENTS)
    assert set(v4["frames"]) == {4} and set(v3["frames"]) == {1}
    paths = [tones[0].paths.scores / f"{name}-seed0.csv" for name in ORACLES]
    stored = pd.concat(map(pd.read_csv, paths))
    pd.testing.assert_frame_equal(oracle_scores, stored)


def test_values_are_musevals(tones, oracle_scores):
    _, store = tones
    ensure_ffmpeg()
    import museval

    entry = store.split("test")[0]
    audio = as_pcm(store.audio(entry))
    references, estimates = audio[1:, :, None], np.repeat(audio[:1, :, None], 4, axis=0)
    sdr, *_ = museval.evaluate(references, estimates, win=8192, hop=8192, mode="v4")
    ours = SDR_V4.rows(oracle_scores).query("model == 'mixture' and track == @entry.name")
    for index, instrument in enumerate(INSTRUMENTS):
        value = ours.set_index("target")["value"][instrument]
        assert value == pytest.approx(np.nanmedian(sdr[index]), abs=1e-4)


def test_ideal_mask_is_far_above_the_mixture(oracle_scores):
    sdr = SDR_V4.rows(oracle_scores)
    by = sdr.pivot_table(index=["track", "target"], columns="model", values="value")
    assert (by["ideal_ratio_mask"] > by["mixture"] + 5).all()


def test_a_system_gets_the_mixture_alone_and_is_scored_once(tones, score):
    _, store = tones
    system = Shares(*4 * [0.5])
    first = score("scaled", system)
    assert system.seen == [(entry.samples,) for entry in store.split("test")]
    pd.testing.assert_frame_equal(first, score("scaled", system))
    assert len(system.seen) == len(store.split("test"))


def test_scores_of_other_weights_or_older_code_are_not_kept(score, monkeypatch):
    score("older", Shares(*4 * [0.5]))
    changed = Shares(*4 * [0.4])
    score("older", changed)
    assert changed.seen
    monkeypatch.setattr(evaluate, "code_hash", lambda *places: "changed")
    again = Shares(*4 * [0.4])
    score("older", again)
    assert again.seen


def test_a_track_without_its_file_is_scored_again_and_a_damaged_file_is_named(tones, score):
    settings, store = tones
    first = score("again", Shares(*4 * [0.5]))
    lost = settings.paths.tracks / "again-seed0" / f"{store.split('test')[0].name}.csv"
    lost.unlink()
    system = Shares(*4 * [0.5])
    pd.testing.assert_frame_equal(score("again", system), first)
    assert len(system.seen) == 1
    lost.write_text("{")
    with pytest.raises(ConfigError, match=r"tracks/again-seed0/.*\.csv is damaged.*delete it"):
        score("again", system)


def test_real_excerpt_is_six_seconds_whose_stems_add_up():
    audio = evaluate.real_excerpt(8192)
    assert audio.shape[0] == 5 and 5.5 < audio.shape[1] / 8192 < 7
    error = np.sum((audio[0] - audio[1:].sum(axis=0)) ** 2) / np.sum(audio[0] ** 2)
    # Lossy coding, stem by stem.
    assert error < 0.05
