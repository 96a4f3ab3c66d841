"""Scores: museval's values, oracles, what is skipped and what is not."""

import numpy as np
import pandas as pd
import pytest

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import evaluate as scoring
from cunet_lib.evaluation import metrics as measures
from cunet_lib.evaluation.metrics import PROTOCOL_METRICS, SCORE_COLUMNS, SCORE_METRICS
from cunet_lib.preprocess.tracks import ensure_ffmpeg


class Scaled:
    """A system that gives every instrument a share of the mixture."""

    def __init__(self, share):
        self.share = share
        self.version = f"scaled {share}"
        self.seen = []

    def __call__(self, mixture):
        self.seen.append(mixture.shape)
        return np.repeat(self.share * mixture[None], len(INSTRUMENTS), axis=0)


@pytest.fixture(scope="module")
def oracle_scores(tones):
    settings, store = tones
    return pd.concat(
        scoring.score_system(settings, store, model=name, seed=0, system=system, workers=1)
        for name, system in scoring.oracles(settings).items()
    )


def test_table_has_a_row_for_everything(tones, oracle_scores):
    _, store = tones
    assert tuple(oracle_scores) == SCORE_COLUMNS
    tracks = len(store.split("test"))
    assert set(oracle_scores["protocol"]) == set(PROTOCOL_METRICS)
    v4 = oracle_scores[oracle_scores["protocol"] == "BSS Eval v4"]
    assert len(v4) == 2 * tracks * len(INSTRUMENTS) * len(SCORE_METRICS) * 2
    assert (v4["frames"] == 4).all()
    v3 = oracle_scores[oracle_scores["protocol"] == "BSS Eval v3"]
    assert len(v3) == 2 * tracks * len(INSTRUMENTS) * 3
    assert set(v3["aggregation"]) == {"whole track"} and set(v3["frames"]) == {1}
    keys = list(SCORE_COLUMNS[:7])
    assert not oracle_scores.duplicated(keys).any()


def test_values_are_musevals(tones, oracle_scores):
    _, store = tones
    ensure_ffmpeg()
    import museval

    entry = store.split("test")[0]
    audio = measures.as_pcm(store.audio(entry))
    references, estimates = audio[1:, :, None], np.repeat(audio[:1, :, None], 4, axis=0)
    sdr, *_ = museval.evaluate(references, estimates, win=8192, hop=8192, mode="v4")
    ours = oracle_scores.query(
        "model == 'mixture' and track == @entry.name and metric == 'SDR'"
        " and aggregation == 'median over frames'"
    ).set_index("target")["value"]
    for index, instrument in enumerate(INSTRUMENTS):
        assert ours[instrument] == pytest.approx(np.nanmedian(sdr[index]), abs=1e-4)


def test_ideal_mask_is_far_above_the_mixture(oracle_scores):
    sdr = oracle_scores.query("metric == 'SDR' and aggregation == 'median over frames'")
    by = sdr.pivot_table(index=["track", "target"], columns="model", values="value")
    assert (by["ideal_ratio_mask"] > by["mixture"] + 5).all()


def test_a_system_gets_the_mixture_alone_and_is_scored_once(tones):
    settings, store = tones
    system = Scaled(0.5)
    call = {"model": "scaled", "seed": 0, "workers": 1}
    first = scoring.score_system(settings, store, system=system, **call)
    assert system.seen == [(entry.samples,) for entry in store.split("test")]
    again = scoring.score_system(settings, store, system=system, **call)
    assert len(system.seen) == len(store.split("test"))
    pd.testing.assert_frame_equal(first, again)
    changed = Scaled(0.4)
    scoring.score_system(settings, store, system=changed, **call)
    assert changed.seen
    stored = pd.read_csv(settings.paths.scores / "scaled-seed0.csv")
    assert tuple(stored) == SCORE_COLUMNS


def test_scores_of_older_code_are_not_kept(tones, monkeypatch):
    settings, store = tones
    call = {"model": "older", "seed": 0, "workers": 1}
    scoring.score_system(settings, store, system=Scaled(0.5), **call)
    monkeypatch.setattr(scoring, "code_hash", lambda *modules: "changed")
    system = Scaled(0.5)
    scoring.score_system(settings, store, system=system, **call)
    assert system.seen


def test_silent_frames_are_counted_and_not_scored(tones, tmp_path, rng):
    settings, _ = tones
    references = rng.normal(size=(4, 8192 * 4))
    references[3, : 8192 * 2] = 0.0
    scoring.score_track(
        references,
        references + 0.1 * rng.normal(size=references.shape),
        track="half silent",
        sample_rate=8192,
        evaluate=settings.evaluate,
        path=tmp_path / "half silent.json",
    )
    table = scoring.read_track(
        tmp_path / "half silent.json", track="half silent", model="m", seed=0
    )
    assert (table["undefined_frames"] == 2).all() and (table["frames"] == 4).all()
    sdr = table.query("metric == 'SDR'")["value"]
    assert sdr.between(15, 25).all()


@pytest.mark.parametrize("silent", ["reference", "estimate", "everything"])
def test_a_wholly_silent_signal_is_undefined_and_spares_the_others(tones, tmp_path, rng, silent):
    settings, _ = tones
    references = rng.normal(size=(4, 8192 * 2))
    estimates = references + 0.1 * rng.normal(size=references.shape)
    if silent == "everything":
        references[:] = 0.0
    else:
        (references if silent == "reference" else estimates)[0] = 0.0
    scoring.score_track(
        references,
        estimates,
        track="t",
        sample_rate=8192,
        evaluate=settings.evaluate,
        path=tmp_path / "t.json",
    )
    table = scoring.read_track(tmp_path / "t.json", track="t", model="m", seed=0)
    lost = table["target"].eq("bass") | (silent == "everything")
    assert table["value"].isna().equals(lost)
    assert (table["undefined_frames"] == table["frames"]).equals(lost)
    assert set(table["frames"]) == {2}


def test_a_track_without_one_of_its_files_is_scored_again(tones):
    settings, store = tones
    call = {"model": "again", "seed": 0, "workers": 1}
    first = scoring.score_system(settings, store, system=Scaled(0.5), **call)
    folder = settings.paths.museval / "again-seed0"
    lost = folder / "further" / f"{store.split('test')[0].name}.json"
    assert lost.is_file()
    lost.unlink()
    system = Scaled(0.5)
    pd.testing.assert_frame_equal(
        scoring.score_system(settings, store, system=system, **call), first
    )
    assert len(system.seen) == 1
    lost.write_text("{")
    with pytest.raises(ConfigError, match=r"further/.*\.json are damaged.*make reproduce"):
        scoring.score_system(settings, store, system=system, **call)


def test_the_mixture_holds_all_energy_where_the_target_is_silent(tmp_path, tones, rng):
    settings, _ = tones
    references = rng.normal(size=(4, 8192 * 2))
    references[3, 8192:] = 0.0
    mixture = references.sum(axis=0)
    paths = tmp_path / "v4.json", tmp_path / "t.json"
    audio = np.concatenate([mixture[None], references])
    scoring._score(audio, np.stack([mixture] * 4), settings, "t", paths)
    table = scoring.read_rows(paths[1], track="t", model="m", seed=0)
    silence = table.query("metric == 'PES' and target == 'vocals'").iloc[0]
    assert silence["value"] == pytest.approx(0.0)
    assert (silence["frames"], silence["undefined_frames"]) == (2, 1)
    # Four mixtures are three too many.
    consistency = table.query("target == 'mixture'").iloc[0]
    assert consistency["value"] == pytest.approx(-20 * np.log10(3))


def test_real_excerpt_is_six_seconds_whose_stems_add_up():
    audio = scoring.real_excerpt(8192)
    assert audio.shape[0] == 5 and 5.5 < audio.shape[1] / 8192 < 7
    error = np.sum((audio[0] - audio[1:].sum(axis=0)) ** 2) / np.sum(audio[0] ** 2)
    # Lossy coding, stem by stem.
    assert error < 0.05


def test_unknown_oracle_is_named(tones):
    with pytest.raises(ConfigError, match="'crystal ball'"):
        scoring.Oracle("crystal ball", tones[0].signal)
