"""Statistics on score tables, against values worked out by hand."""

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cunet_lib.core.settings import ConfigError, Statistics, load_profile
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import SCORE_COLUMNS, SDR_V3, Measure
from cunet_lib.evaluation.statistics import comparison_table

INSTRUMENTS = ("bass", "drums", "other", "vocals")
TRACKS = ("A - 1", "B - 2", "C - 3", "NA")


def score_rows(model, value, *, seed=0, tracks=TRACKS, undefined=()):
    """Rows of one system; ``value`` is called with track number and target."""
    rows = []
    for (number, track), target in itertools.product(enumerate(tracks), INSTRUMENTS):
        gone = (track, target) in undefined
        score = float("nan") if gone else value(number, target)
        frames = (10, 10 if gone else 1)
        key = (model, seed, track, target)
        for shift, aggregation in ((0.0, "median over frames"), (-1.0, "mean over frames")):
            for metric in ("SDR", "SIR", "SAR", "ISR"):
                extra = 2.0 * ("SDR", "SIR", "SAR", "ISR").index(metric)
                rows.append(
                    (*key, metric, "BSS Eval v4", aggregation, score + extra + shift, *frames)
                )
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def study():
    """Scores of a mixture, U-Nets, one C-U-Net and the ideal mask."""
    levels = {
        "mixture": lambda track, target: -6.0 + track,
        "unet": lambda track, target: 4.0 + track,
        "dense_simple": lambda track, target: 3.0 + 1.5 * track,
        "ideal_ratio_mask": lambda track, target: 12.0 + track,
    }
    return pd.concat([score_rows(model, value) for model, value in levels.items()])


def write(folder, scores):
    folder.mkdir(parents=True, exist_ok=True)
    for (model, seed), group in scores.groupby(["model", "seed"]):
        group.to_csv(folder / f"{model}-seed{seed}.csv", index=False)
    return folder


# ------------------------------------------------------------------------------ loading


@pytest.fixture
def settings(roots):
    """A profile of two trained systems, whose scores lie in a fresh folder."""
    return load_profile("demo", ["shipped=dense_simple", "seeds={unet: 1, dense_simple: 1}"])


def test_load_scores_keeps_values_and_names_and_ignores_other_files(settings):
    folder = write(settings.paths.scores, study())
    (folder / "scores.csv").write_text("not,scores\n1,2\n")
    for other in ("unet-seed1", "cnn_simple-seed0"):
        shutil.copy(folder / "unet-seed0.csv", folder / f"{other}.csv")
    loaded = analysis.load_scores(settings)
    assert tuple(loaded.columns) == SCORE_COLUMNS
    assert len(loaded) == len(study())
    assert set(loaded["track"]) == set(TRACKS)  # also the track that is named NA
    assert [*loaded["model"].unique()] == ["mixture", "unet", "dense_simple", "ideal_ratio_mask"]
    value = loaded.query("model == 'unet' and track == 'B - 2' and target == 'bass'")
    value = value[(value["metric"] == "SIR") & (value["aggregation"] == "median over frames")]
    assert value["value"].item() == 7.0


@pytest.mark.parametrize("lost", ["mixture-seed0", "dense_simple-seed0"])
def test_load_scores_names_the_missing_system_and_the_remedy(settings, lost):
    folder = write(settings.paths.scores, study())
    (folder / f"{lost}.csv").unlink()
    with pytest.raises(ConfigError, match=rf"demo/scores/{lost}\.csv is missing; run `make repro"):
        analysis.load_scores(settings)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(",frames,", ",frame,", 1), "column 'frames' is missing"),
        (lambda text: text.replace(",protocol", "", 1), "is damaged"),
        (lambda text: text.partition("\n")[2], "is missing"),
        (lambda text: text.partition("\n")[0] + "\n", "no rows"),
        (lambda text: text.replace("unet,", "mixture,"), "other scores than unet"),
        (lambda text: text.replace("unet,0,", "unet,1,"), "other scores than unet with seed 0"),
        (lambda text: text.replace(",1.0,", ",high,", 1), "not a CSV table"),
        (lambda text: text + '"' + text, "not a CSV table"),
        (lambda text: text[:-4], "is damaged"),
        (lambda text: text[:-1], "cut short"),
        (lambda text: "La la la\n" * 9, "is missing"),
        (lambda text: "", "not a CSV table"),
    ],
)
def test_load_scores_refuses_damaged_tables_by_name(settings, damage, message):
    folder = write(settings.paths.scores, study())
    text = score_rows("unet", lambda track, target: 1.0).to_csv(index=False)
    (folder / "unet-seed0.csv").write_text(damage(text))
    with pytest.raises(ConfigError, match=rf"unet-seed0\.csv.*{message}.*delete it") as error:
        analysis.load_scores(settings)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ description


def test_seeds_are_averaged_within_tracks_before_anything_else():
    # Seed 1 is 2 dB higher in every track: the spread over tracks must not see it.
    scores = pd.concat(
        [score_rows("unet", lambda t, _, up=2 * seed: t + up, seed=seed) for seed in (0, 1)]
    )
    tracks = analysis.track_scores(scores)
    assert len(tracks) == len(TRACKS) * len(INSTRUMENTS)
    assert set(tracks["seeds"]) == {2}
    assert set(tracks["frames"]) == {20}
    row = analysis.summary(scores).set_index("target").loc["all"]
    assert row["mean"] == pytest.approx(np.mean([0, 1, 2, 3]) + 1)
    assert row["std"] == pytest.approx(np.std([0, 1, 2, 3], ddof=1))


def test_summary_counts_what_has_no_score_and_leaves_it_out():
    scores = score_rows(
        "unet",
        lambda track, target: track + (10.0 if target == "vocals" else 0.0),
        undefined={("C - 3", "vocals")},
    )
    by_target = analysis.summary(scores).set_index("target")
    assert by_target.loc["vocals", "tracks"] == 3
    assert by_target.loc["vocals", "undefined_tracks"] == 1
    assert by_target.loc["vocals", "undefined_frames"] == 13
    assert by_target.loc["vocals", "median"] == 11.0
    assert by_target.loc["vocals", "mean"] == pytest.approx((10 + 11 + 13) / 3)
    assert by_target.loc["bass", "undefined_tracks"] == 0
    # A track's mean goes over the instruments that have a score in it.
    overall = by_target.loc["all"]
    assert overall["mean"] == pytest.approx(np.mean([2.5, 3.5, 2.0, 5.5]))
    assert overall["undefined_frames"] == 16 + 9


def test_summary_says_protocol_and_aggregation_and_keeps_them_apart():
    medians = analysis.summary(study())
    means = analysis.summary(study(), Measure(aggregation="mean over frames"))
    assert set(medians["protocol"]) == {"BSS Eval v4"}
    assert set(means["aggregation"]) == {"mean over frames"}
    assert (medians["mean"] - means["mean"]).tolist() == pytest.approx([1.0] * len(medians))
    with pytest.raises(ConfigError, match=r"no SDR of BSS Eval v3, whole track"):
        analysis.summary(study(), SDR_V3)


# ------------------------------------------------------------------------------ pairs


def test_differences_pair_tracks():
    pairs = analysis.paired_differences(study())
    assert set(pairs["model"]) == {"dense_simple"}
    assert set(pairs["target"]) == {"all", *INSTRUMENTS}
    bass = pairs[pairs["target"] == "bass"].set_index("track")["difference"]
    assert bass.to_dict() == pytest.approx({"A - 1": -1.0, "B - 2": -0.5, "C - 3": 0.0, "NA": 0.5})


def test_differences_over_all_instruments_use_those_that_both_have():
    scores = pd.concat(
        [
            score_rows("unet", lambda *_: 5.0),
            score_rows(
                "dense_simple",
                lambda _, target: 100.0 if target == "vocals" else 6.0,
                undefined={("A - 1", "vocals")},
            ),
        ]
    )
    pairs = analysis.paired_differences(scores)
    overall = pairs[pairs["target"] == "all"].set_index("track")["difference"]
    assert overall["A - 1"] == pytest.approx(1.0)
    assert overall["B - 2"] == pytest.approx((3 * 1.0 + 95.0) / 4)
    table = comparison_table(scores, Statistics()).set_index("target")
    assert table.loc["vocals", ["tracks", "undefined_tracks"]].tolist() == [3, 1]


def test_comparisons_describe_the_differences():
    row = comparison_table(study(), Statistics()).set_index("target").loc["drums"]
    values = np.array([-1.0, -0.5, 0.0, 0.5])
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(ddof=1))
    assert row["median"] == pytest.approx(-0.25)
    assert row["tracks_better"] == 1
    assert row["ci_low"] < values.mean() < row["ci_high"]
    assert values.min() <= row["ci_low"] and row["ci_high"] <= values.max()


def test_differences_need_the_same_tracks_and_a_reference():
    scores = pd.concat(
        [
            score_rows("unet", lambda *_: 1.0),
            score_rows("dense_simple", lambda *_: 1.0, tracks=TRACKS[:3]),
        ]
    )
    with pytest.raises(ConfigError, match="differ in tracks"):
        analysis.paired_differences(scores)
    with pytest.raises(ConfigError, match="no SDR scores of unet"):
        analysis.paired_differences(scores[scores["model"] != "unet"])


def test_bootstrap_interval_is_scipys_and_repeatable():
    values = np.random.default_rng(1).normal(1.0, 2.0, 14)
    interval = analysis.bootstrap_interval(values)
    assert interval == analysis.bootstrap_interval(values)
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0))
    assert interval == pytest.approx(tuple(expected.confidence_interval))
    # Close to the interval that normal theory gives for these values.
    half = stats.t.ppf(0.975, 13) * values.std(ddof=1) / np.sqrt(14)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.35)
    narrow = analysis.bootstrap_interval(values, confidence=0.5)
    assert interval[0] < narrow[0] < narrow[1] < interval[1]


def test_bootstrap_interval_of_few_or_equal_values():
    assert np.isnan(analysis.bootstrap_interval(np.array([1.0, 2.0]))).all()
    assert analysis.bootstrap_interval(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)
