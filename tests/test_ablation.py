"""The released code's evaluation, applied on purpose: what it hides and what it leaves alone."""

import numpy as np
import pandas as pd
import pytest
from test_evaluate import Shares

from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import ablation
from cunet_lib.evaluation.evaluate import score_system
from cunet_lib.evaluation.metrics import SCORE_COLUMNS


def test_rescaling_takes_range_and_mean_from_the_reference(rng):
    references = rng.normal(1.0, 2.0, (4, 500))
    estimates = rng.normal(-3.0, 0.1, (4, 500))
    estimates[2] = 0.0
    rescaled = ablation.rescaled_to(estimates, references)
    heard = [0, 1, 3]
    assert np.ptp(rescaled[heard], axis=1) == pytest.approx(np.ptp(references[heard], axis=1))
    assert rescaled[heard].mean(axis=1) == pytest.approx(references[heard].mean(axis=1))
    assert (rescaled[2] == 0).all()
    # Shape is kept: a gain and a shift.
    assert np.corrcoef(rescaled[0], estimates[0])[0, 1] == pytest.approx(1.0)


def test_own_maximum_forgets_the_level(tones, rng):
    signal = tones[0].signal
    estimates = rng.normal(size=(4, 8192))
    estimates[1] = 0.0
    once = ablation.by_own_maximum(estimates, signal)
    again = ablation.by_own_maximum(0.01 * estimates, signal)
    assert again == pytest.approx(once, rel=1e-4)
    assert (once[1] == 0).all()


def test_gain_alone_moves_plain_scores_and_not_the_invariant_ones(tones, rng):
    references = rng.normal(size=(4, 3 * 8192))
    estimates = 0.7 * references + 0.2 * rng.normal(size=references.shape)
    signals = references.sum(axis=0), references, np.stack([estimates, estimates])
    table = ablation.score_ablated(*signals, tones[0])
    assert table["ablation"].drop_duplicates().tolist() == list(ablation.ABLATIONS)
    wide = table.pivot_table(
        index=["protocol", "metric", "target"], columns="ablation", values="value"
    )
    change = wide.sub(wide["sound"], axis=0)
    assert change["end to end"].eq(0).all()
    for protocol in ("BSS Eval v3", "SI-SDR"):
        assert change.loc[protocol, "own maximum"].abs().max() < 1e-3
    for protocol in ("BSS Eval v4", "plain SDR"):
        # Divided by a spectral maximum of hundreds, next to nothing is left of the estimate.
        assert wide.loc[protocol, "own maximum"].abs().max() < 0.3
        assert (change.loc[protocol, "own maximum"] < -5).all()
    # The reference gives back what the model had lost: its gain of 0.7 goes unnoticed.
    assert (change.loc["plain SDR", "reference range"] > 0.5).all()


def test_every_test_track_is_scored_once_under_every_ablation(tones, monkeypatch):
    settings, store = tones
    system, joined = Shares(0.5, 0.4, 0.3, 0.2), Shares(0.5, 0.4, 0.3, 0.1)
    call = {"model": "cnn_simple", "seed": 3, "workers": 1, "system": system, "joined": joined}
    table = ablation.score_ablations(settings, store, **call)
    assert tuple(table) == ("ablation", *SCORE_COLUMNS)
    tracks = len(store.split("test"))
    assert len(table) == len(ablation.ABLATIONS) * tracks * len(INSTRUMENTS) * 6
    assert set(table["model"]) == {"cnn_simple"} and set(table["seed"]) == {3}
    pd.testing.assert_frame_equal(ablation.score_ablations(settings, store, **call), table)
    assert len(system.seen) == len(joined.seen) == tracks
    stored = pd.read_csv(settings.paths.scores / "ablation" / "cnn_simple-seed3.csv")
    assert len(stored) == len(table)
    # The sound rows are the study's own scores.
    sound = table[table["ablation"] == "sound"].drop(columns="ablation")
    own = score_system(settings, store, model="cnn_simple", seed=3, system=system, workers=1)
    keys = ["track", "target", "metric", "protocol", "aggregation"]
    both = sound.merge(own, on=keys, suffixes=("", "_own"))
    assert len(both) == len(sound)
    assert both["value"].to_numpy() == pytest.approx(both["value_own"].to_numpy(), abs=1e-3)
    # Other weights are scored anew, whatever the scores are.
    joined.version = "other weights"
    rows = table.iloc[:1, 4:].assign(ablation="sound")
    monkeypatch.setattr(ablation, "score_ablated", lambda *signals: rows)
    again = ablation.score_ablations(settings, store, **call)
    assert len(joined.seen) == 2 * tracks
    assert len(again) == tracks
