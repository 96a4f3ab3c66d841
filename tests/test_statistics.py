"""Intervals, tests, verdicts and power, against SciPy, hand-made values and simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from test_scores import score_rows

from cunet_lib.core.settings import Statistics, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.metrics import SDR_V4

STATISTICS = Statistics()
TRACKS = tuple(f"Band {number} - Song" for number in range(12))


def study(
    rng, *, seeds=(0,), shift=0.0, tracks=TRACKS, spread=0.3, run=0.0, models=("cnn_simple",)
):
    """Scores of mixture, U-Nets and C-U-Nets that are ``shift`` dB above the U-Nets on average."""
    hard = rng.normal(0, 3, (len(tracks), 4))
    level = {target: place for place, target in enumerate(INSTRUMENTS)}
    frames = [score_rows("mixture", lambda t, name: hard[t, level[name]] - 6, tracks=tracks)]
    for seed, model in itertools.product(seeds, ("unet", *models)):
        lucky = rng.normal(0, run)
        noise = rng.normal(0, spread, hard.shape)
        up = lucky + (shift if model != "unet" else 0.0)
        frames.append(
            score_rows(
                model,
                lambda t, name, up=up, noise=noise: (hard + noise)[t, level[name]] + up,
                seed=seed,
                tracks=tracks,
            )
        )
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------------------ Holm

PVALUES = st.lists(st.floats(0, 1), min_size=1, max_size=25)


def test_holm_by_hand():
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert inference.holm([]).tolist() == []


def test_holm_leaves_missing_p_values_out_of_the_family():
    adjusted = inference.holm([np.nan, 0.02, 0.04])
    assert np.isnan(adjusted[0])
    assert adjusted[1:].tolist() == inference.holm([0.02, 0.04]).tolist()


@given(pvalues=PVALUES, alpha=st.floats(0.001, 0.3))
def test_holm_rejects_what_stepping_down_rejects(pvalues, alpha):
    rejected = set()
    for step, place in enumerate(np.argsort(pvalues, kind="stable")):
        if pvalues[place] * (len(pvalues) - step) > alpha:
            break
        rejected.add(int(place))
    assert set(np.flatnonzero(inference.holm(pvalues) <= alpha)) == rejected


# ------------------------------------------------------------------------------ tests


def test_signed_rank_is_scipys_and_survives_equal_scores(rng):
    values = rng.normal(0.4, 1, 14)
    assert inference.signed_rank(values) == stats.wilcoxon(values).pvalue
    assert inference.signed_rank(np.zeros(5)) == 1
    assert np.isnan(inference.signed_rank(np.array([])))


def test_equivalence_is_the_interval_of_90_percent_within_the_margin(rng):
    for mean, deviation in itertools.product((0.0, 0.2, 0.4), (0.3, 0.6, 1.2)):
        values = rng.normal(mean, deviation, 14)
        low, high = stats.t.interval(0.9, 13, values.mean(), stats.sem(values))
        within = max(-low, high) < 0.5
        assert (inference.equivalence(values, 0.5) <= 0.05) == within


def test_equal_differences_are_equivalent_exactly_if_within_the_margin():
    assert inference.equivalence(np.full(8, 0.4), 0.5) == 0
    assert not inference.equivalence(np.full(8, 0.5), 0.5) <= 0.05
    assert not inference.equivalence(np.full(8, 0.6), 0.5) <= 0.05
    assert np.isnan(inference.equivalence(np.array([0.1]), 0.5))


def test_at_the_margin_equivalence_is_rarely_found(rng):
    """The test keeps its level: 5 % at most, but for the noise of a simulation."""
    found = sum(
        inference.equivalence(0.5 + rng.normal(0, 0.6, 12), 0.5) <= 0.05 for _ in range(1000)
    )
    assert found / 1000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


DIFFERENCES = arrays.arrays(
    float,
    st.integers(3, 20),
    elements=st.floats(-20, 20).map(lambda value: round(value, 3)),
)


@given(values=DIFFERENCES, margin=st.floats(0.01, 3), beyond=st.floats(1e-6, 5))
def test_a_mean_beyond_the_margin_is_never_equivalent(values, margin, beyond):
    shifted = values - values.mean() + margin + beyond
    for side in (1, -1):
        assert not inference.equivalence(side * shifted, margin) <= 0.05


# ------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("low", "high", "difference", "equivalence", "words"),
    [
        (-0.1, 0.2, 0.6, 0.01, "equivalent"),
        (0.1, 0.3, 0.01, 0.01, "equivalent (better by less than the margin)"),
        (-0.3, -0.1, 0.05, 0.05, "equivalent (worse by less than the margin)"),
        (0.2, 0.9, 0.01, 0.4, "better"),
        (-0.9, -0.2, 0.01, 0.4, "worse"),
        (-0.2, 0.9, 0.20, 0.4, "undecided"),
        (0.1, 0.9, 0.06, 0.4, "undecided"),  # an interval alone does not decide
        (-0.1, 0.9, 0.01, 0.4, "undecided"),  # nor does a test of ranks alone
        (np.nan, np.nan, np.nan, np.nan, "undecided"),
    ],
)
def test_verdict(low, high, difference, equivalence, words):
    assert inference.verdict(low, high, difference, equivalence, 0.05) == words


def test_comparison_finds_what_was_put_in(rng):
    models = ("dense_simple", "cnn_simple")
    scores = study(rng, models=models)
    far = scores["model"] == "dense_simple"
    scores.loc[far, "value"] -= 2.0
    table = inference.comparison_table(scores, STATISTICS).set_index(["model", "target"])
    assert len(table) == 2 * 5
    assert set(table.loc["dense_simple", "verdict"]) == {"worse"}
    assert all(table.loc["cnn_simple", "verdict"].str.startswith("equivalent"))
    assert set(table["seeds"]) == {1} and "seed_std" not in table
    assert set(table["margin_db"]) == {0.5}


def test_comparison_corrects_over_all_rows(rng):
    scores = study(rng, shift=0.3, models=("dense_simple", "cnn_simple"))
    table = inference.comparison_table(scores, STATISTICS)
    pairs = analysis.paired_differences(scores)
    raw = [
        stats.wilcoxon(
            pairs.loc[(pairs["model"] == m) & (pairs["target"] == t), "difference"]
        ).pvalue
        for m, t in zip(table["model"], table["target"], strict=True)
    ]
    assert table["p_difference"].to_numpy() == pytest.approx(inference.holm(raw))


@settings(max_examples=8)
@given(shift=st.floats(0.5, 8), side=st.sampled_from((1, -1)), number=st.integers(0, 99))
def test_scores_shifted_beyond_the_margin_are_never_called_equivalent(shift, side, number):
    scores = study(np.random.default_rng(number), tracks=TRACKS[:6])
    pairs = analysis.paired_differences(scores)
    worst = pairs.groupby("target")["difference"].mean()
    # The means of all targets end at or beyond the margin.
    amount = shift - worst.min() if side > 0 else -shift - worst.max()
    scores.loc[scores["model"] == "cnn_simple", "value"] += amount
    table = inference.comparison_table(scores, STATISTICS)
    assert not table["verdict"].str.startswith("equivalent").any()


def test_a_wide_margin_calls_a_shift_equivalent_with_its_sign(rng):
    scores = study(rng, shift=-1.0)
    wide = load_profile("smoke", "statistics.margin_db=3").statistics
    verdicts = set(inference.comparison_table(scores, wide)["verdict"])
    assert verdicts == {"equivalent (worse by less than the margin)"}


# ------------------------------------------------------------------------------ seeds


def test_comparison_of_several_seeds_averages_them_and_carries_their_spread(rng):
    scores = study(rng, seeds=(3, 5, 8), run=0.5)
    table = inference.comparison_table(scores, STATISTICS).set_index("target")
    drums = SDR_V4.rows(scores).query("target == 'drums'")
    wide = drums.pivot_table(index=["track", "seed"], columns="model", values="value")
    differences = (wide["cnn_simple"] - wide["unet"]).unstack("seed")  # noqa: PD010
    row = table.loc["drums"]
    assert row["seeds"] == 3
    assert row["seed_std"] == pytest.approx(differences.mean().std())
    means = differences.mean(axis=1)
    assert row["mean"] == pytest.approx(means.mean())
    assert row["p_equivalence"] == pytest.approx(inference.equivalence(means, 0.5))


def test_spread_over_seeds_is_that_of_the_means_over_tracks():
    scores = pd.concat(
        [
            score_rows("unet", lambda track, _, up=up: 2.0 * track + up, seed=seed)
            for seed, up in ((0, 0.0), (1, 1.0), (2, 5.0))
        ]
        + [score_rows("mixture", lambda track, _: -6.0)]
    )
    spread = inference.seed_spread(scores)
    assert set(spread) == {("unet", target) for target in ("all", *INSTRUMENTS)}
    assert [*spread.values()] == pytest.approx([np.std([0, 1, 5], ddof=1)] * len(spread))
    assert inference.seed_spread(scores[scores["seed"] == 0]) == {}


def test_systems_may_have_different_seeds(rng):
    scores = study(rng, seeds=(0, 1, 2), run=0.5)
    part = scores[(scores["model"] != "cnn_simple") | (scores["seed"] == 0)]
    row = inference.comparison_table(part, STATISTICS).set_index("target").loc["drums"]
    drums = SDR_V4.rows(part).query("target == 'drums'")
    means = drums.groupby("model")["value"].mean()
    assert row["mean"] == pytest.approx(means["cnn_simple"] - means["unet"])
    assert row["seeds"] == 1 and "seed_std" not in row  # one seed has no spread
    part = scores[(scores["model"] != "cnn_simple") | (scores["seed"] < 2)]
    row = inference.comparison_table(part, STATISTICS).set_index("target").loc["drums"]
    both = inference.comparison_table(scores[scores["seed"] < 2], STATISTICS).set_index("target")
    assert row["seeds"] == 2 and row["seed_std"] == pytest.approx(both.loc["drums", "seed_std"])


# ------------------------------------------------------------------------------ power


@pytest.mark.parametrize(
    ("tracks", "deviation", "difference"),
    [(14, 0.6, 0.0), (50, 1.2, 0.0), (20, 1.2, 0.0), (30, 0.8, 0.25), (6, 0.3, 0.1)],
)
def test_power_is_what_a_simulation_gives(tracks, deviation, difference, rng):
    values = rng.normal(difference, deviation, (20_000, tracks))
    sides = [
        stats.ttest_1samp(values, -0.5, axis=1, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.5, axis=1, alternative="less").pvalue,
    ]
    simulated = (np.max(sides, axis=0) <= 0.05).mean()
    power = inference.equivalence_power(
        deviation, tracks, margin=0.5, alpha=0.05, difference=difference
    )
    assert power == pytest.approx(simulated, abs=0.013)


@given(spread=st.floats(0, 4), tracks=st.integers(2, 60), difference=st.floats(0, 1))
def test_power_is_a_probability_and_falls_with_the_true_difference(spread, tracks, difference):
    test = {"margin": 0.5, "alpha": 0.05}
    best = inference.equivalence_power(spread, tracks, **test)
    power = inference.equivalence_power(spread, tracks, **test, difference=difference)
    assert 0 <= power <= best + 1e-9 <= 1 + 2e-9
    assert power == pytest.approx(
        inference.equivalence_power(spread, tracks, **test, difference=-difference)
    )


def test_needed_tracks_are_the_fewest_that_suffice(rng):
    table = inference.comparison_table(study(rng, spread=0.6), STATISTICS).set_index("target")
    row = table.loc["bass"]
    test = {"margin": 0.5, "alpha": 0.05}
    needed = int(row["tracks_needed"])
    spread = row["std"]
    assert inference.equivalence_power(spread, needed, **test) >= 0.8
    assert inference.equivalence_power(spread, needed - 1, **test) < 0.8
    expected = inference.equivalence_power(spread, row["tracks"], **test)
    assert row["power"] == pytest.approx(expected)
    assert np.isnan(inference.tracks_needed(1e3, **test, power=0.8))


def test_power_of_few_tracks_is_missing_or_none(rng):
    scores = study(rng, tracks=TRACKS[:1])
    assert inference.comparison_table(scores, STATISTICS)["power"].isna().all()
    assert inference.equivalence_power(1.0, 1, margin=0.5, alpha=0.05) == 0


# ------------------------------------------------------------------------------ the authors' script


def test_tukey_is_scipys_over_trained_systems_and_tracks_that_all_have(rng):
    scores = study(rng, models=("dense_simple", "cnn_simple"), shift=6.0, spread=0.1)
    lost = scores["track"].eq(TRACKS[0]) & scores["model"].eq("unet") & scores["target"].eq("bass")
    scores.loc[lost | scores["target"].eq("vocals"), "value"] = np.nan
    scores = scores[scores["aggregation"] == "median over frames"]
    table = inference.tukey_table(scores, STATISTICS)
    assert len(table) == 4 * 3 and not table.duplicated(["target", "model", "reference"]).any()
    sdr = SDR_V4.rows(scores).query("target == 'bass' and track != @TRACKS[0]")
    groups = [sdr.loc[sdr["model"] == m, "value"] for m in ("unet", "cnn_simple")]
    row = table.set_index(["target", "model", "reference"]).loc["bass", "cnn_simple", "unet"]
    assert row["tracks"] == 11
    assert row["mean"] == pytest.approx(groups[1].mean() - groups[0].mean())
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    # Two groups of three: the p value is that of the studentised range.
    everyone = [sdr.loc[sdr["model"] == m, "value"] for m in ("unet", "dense_simple", "cnn_simple")]
    assert row["p_difference"] == pytest.approx(stats.tukey_hsd(*everyone).pvalue[2, 0])
    silent = table[table["target"] == "vocals"]
    assert set(silent["tracks"]) == {0} and silent["p_difference"].isna().all()
