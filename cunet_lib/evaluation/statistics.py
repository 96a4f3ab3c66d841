"""Inference from paired scores: tests, equivalence within a margin, power, and spread over seeds.

The question of the study is one of equivalence, which a missing difference does not show. So each
comparison of a C-U-Net with the dedicated U-Nets is put to two tests, and a verdict in words says
what they give together:

* a difference: Wilcoxon's signed-rank test over tracks, corrected by Holm's method over the family
  of all comparisons in the table, together with an interval of the mean that leaves out zero;
* equivalence: two one-sided t-tests (TOST; Schuirmann 1987) of the mean difference against a
  margin stated beforehand, the setting ``statistics.margin_db``.

Tracks are the units. With several seeds a track's scores are averaged over them first, so all
statements hold for the runs at hand; the spread between runs is shown beside them.

References: Holm 1979; Phillips 1990, Power of the two one-sided tests procedure; Berger 1982
(intersection-union tests).
"""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from cunet_lib.core.settings import Statistics
from cunet_lib.core.systems import INSTRUMENTS, TRAINED
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import SDR_V4, Measure
from cunet_lib.evaluation.scores import REFERENCE

PLACE = ["model", "target"]

MOST_TRACKS = 10_000
"""Beyond this number, :func:`comparison_table` says that no number suffices."""


def seed_spread(
    scores: pd.DataFrame, measure: Measure = SDR_V4, *, differences: bool = False
) -> dict[tuple[str, str], float]:
    """Spread over training runs: deviation over seeds (dB, ddof 1) of means over tracks.

    By model and target, for trained systems with several seeds only: empty for a study with one.
    Means are those of scores, or of differences over the seeds that both systems have.
    """
    trained, means = scores[scores["model"].isin(TRAINED)], []
    for _, run in trained.groupby("seed"):
        if not differences:
            means.append(analysis.summary(run, measure).set_index(PLACE)["mean"])
        elif {REFERENCE} < set(run["model"]):
            pairs = analysis.paired_differences(run, measure)
            means.append(pairs.groupby(PLACE)["difference"].mean())
    return pd.concat(means).groupby(level=PLACE).std().dropna().to_dict() if means else {}


def signed_rank(values: np.ndarray) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test over tracks, by SciPy.

    Parameters
    ----------
    values
        Differences ``(tracks,)`` without missing values; zeros are left out (Wilcoxon's way).

    Returns
    -------
    float
        1 if all differences are zero, missing without any.
    """
    values = np.asarray(values, float)
    if not values.any():
        return 1.0 if len(values) else float("nan")
    with warnings.catch_warnings():
        # With ties or zeros SciPy may have to approximate, and says so.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.wilcoxon(values).pvalue)


def equivalence(values: np.ndarray, margin: float) -> float:
    """Test whether the mean is within ``± margin``: p value of two one-sided t-tests (TOST).

    Parameters
    ----------
    values
        Differences ``(tracks,)`` without missing values.
    margin
        Above 0, in the unit of ``values``.

    Returns
    -------
    float
        The larger p value of the tests against ``mean <= -margin`` and ``mean >= margin``; missing
        for fewer than 2 tracks.
    """
    if len(values) < 2:
        return float("nan")
    with warnings.catch_warnings():
        # Equal differences have no spread: SciPy warns, and gives the right limit of p.
        warnings.simplefilter("ignore", RuntimeWarning)
        above = scipy.stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(np.maximum(above, below))


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Adjust p values by Holm's step-down method (Holm 1979) for a family of tests.

    Holds under any dependence between the tests. Missing p values belong to no test: they stay
    missing and do not count.

    Returns
    -------
    numpy.ndarray
        In the order given: the ``k``-th smallest of ``m`` p values times ``m - k + 1``, at least
        as large as those of smaller p values, at most 1.
    """
    pvalues = np.asarray(pvalues, float)
    adjusted = np.full(len(pvalues), np.nan)
    order = np.argsort(pvalues, kind="stable")[: int(np.isfinite(pvalues).sum())]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(pvalues[order] * factors), 1.0)
    return adjusted


def verdict(
    low: float, high: float, p_difference: float, p_equivalence: float, alpha: float
) -> str:
    """Both tests in words: "equivalent" (with a sign, or not), "better", "worse", "undecided".

    There is a difference if the corrected p value is at most ``alpha`` and the interval of the
    mean leaves out zero; its sign is the interval's. There is equivalence if the p value of TOST
    is at most ``alpha``. Equivalence comes first, since a difference below the margin was called
    unimportant beforehand; its sign is then added. "undecided": neither was shown.

    Parameters
    ----------
    low, high
        Interval of the mean difference; missing bounds leave out nothing.
    p_difference
        Of Wilcoxon's test, corrected.
    p_equivalence
        Of :func:`equivalence`.
    """
    differs = p_difference <= alpha and (low > 0 or high < 0)
    side = "better" if low > 0 else "worse"
    if p_equivalence <= alpha:
        return "equivalent" + (f" ({side} by less than the margin)" if differs else "")
    return side if differs else "undecided"


def comparison_table(
    scores: pd.DataFrame, statistics: Statistics, measure: Measure = SDR_V4
) -> pd.DataFrame:
    """Paired differences from the dedicated U-Nets per model and target, tested.

    The family of Holm's correction is every row of this table: all models, each instrument and
    their mean. The p values of TOST are not corrected: that a model is equivalent throughout takes
    all of its rows, and such a claim keeps its level without correction (Berger 1982); a row that
    is picked out afterwards does not. Power is that of TOST at the variance seen, for a true
    difference of 0: the best case.

    Returns
    -------
    pandas.DataFrame
        Columns model, reference, target, metric, protocol, aggregation, tracks, undefined_tracks,
        mean, std, median, ci_low, ci_high (bootstrap interval of the mean at level 1 - alpha; dB),
        tracks_better (than the reference), seeds, seed_std (dB, of the mean over tracks; only with
        several seeds), margin_db, p_difference (corrected), p_equivalence, power,
        tracks_needed for ``statistics.power`` (missing where no number up to :data:`MOST_TRACKS`
        suffices), verdict.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.evaluation.scores.paired_differences`.
    """
    pairs = analysis.paired_differences(scores, measure)
    spread = seed_spread(scores, measure, differences=True)
    test = {"margin": statistics.margin_db, "alpha": statistics.alpha}
    rows = []
    for (model, target), group in pairs.groupby(PLACE, sort=False):
        values = group["difference"].dropna().to_numpy()
        low, high = analysis.bootstrap_interval(values, confidence=1 - statistics.alpha)
        row = {"model": model, "reference": REFERENCE, "target": target, "tracks": len(values)}
        row["undefined_tracks"] = len(group) - len(values)
        row |= group["difference"].agg(["mean", "std", "median"]).to_dict()
        row |= {"ci_low": low, "ci_high": high, "tracks_better": int((values > 0).sum())}
        row |= {"seeds": scores.loc[scores["model"] == model, "seed"].nunique()}
        row |= {"seed_std": spread[model, target]} if (model, target) in spread else {}
        row |= {"margin_db": statistics.margin_db, "p_difference": signed_rank(values)}
        row["p_equivalence"] = equivalence(values, statistics.margin_db)
        row["power"] = equivalence_power(row["std"], len(values), **test)
        row["tracks_needed"] = tracks_needed(row["std"], power=statistics.power, **test)
        rows.append(row)
    table = analysis.ordered(pd.DataFrame(rows))
    table["p_difference"] = holm(table["p_difference"])
    tests = table[["ci_low", "ci_high", "p_difference", "p_equivalence"]].to_numpy()
    table["verdict"] = [verdict(*row, statistics.alpha) for row in tests]
    return analysis.defined(table, measure, after="target")


def equivalence_power(
    spread: float, tracks: int, *, margin: float, alpha: float, difference: float = 0.0
) -> float:
    """Chance that :func:`equivalence` gives at most ``alpha`` (Phillips 1990).

    The mean is normal, the squared standard error a scaled chi-squared variable that is
    independent of it; their joint probability of passing both tests is integrated numerically.

    Parameters
    ----------
    spread
        Standard deviation of the differences over tracks.
    tracks
        How many there would be.
    margin, alpha
        Of the test.
    difference
        True mean difference; 0 is the best case.

    Returns
    -------
    float
        Between 0 and 1; missing if the spread is.
    """
    if not np.isfinite(spread):
        return float("nan")
    if tracks < 2:
        return 0.0
    squared, freedom = spread**2 / tracks, tracks - 1.0
    if squared <= 1e-18:  # rounding
        return float(abs(difference) < margin)
    # Mid-quantiles of the standard error: an average over them is the integral over its density.
    shares = (np.arange(1000) + 0.5) / 1000
    errors = np.sqrt(squared * scipy.stats.chi2.ppf(shares, freedom) / freedom)
    room = margin - scipy.stats.t.ppf(1 - alpha, freedom) * errors
    inside = scipy.stats.norm.cdf((room - difference) / np.sqrt(squared))
    outside = scipy.stats.norm.cdf((-room - difference) / np.sqrt(squared))
    return float(np.where(room > 0, inside - outside, 0.0).mean())


def tracks_needed(spread: float, *, margin: float, alpha: float, power: float) -> float:
    """Fewest tracks with which :func:`equivalence_power` reaches ``power``.

    Returns
    -------
    float
        Missing if none up to :data:`MOST_TRACKS` does.
    """

    def enough(tracks: int) -> bool:
        return equivalence_power(spread, tracks, margin=margin, alpha=alpha) >= power

    fewest = bisect.bisect_left(range(2, MOST_TRACKS + 1), True, key=enough) + 2
    return float(fewest) if fewest <= MOST_TRACKS else float("nan")


# ------------------------------------------------------------------------------ the authors' script


def tukey_table(
    scores: pd.DataFrame, statistics: Statistics, measure: Measure = SDR_V4
) -> pd.DataFrame:
    """Tukey's honestly significant difference (SciPy's) between trained systems, per instrument.

    As in the analysis script that the paper's authors released (gabolsgabs/vunet,
    ``visualizing_old.py``). Tracks are not paired here, so the spread between songs, which the
    paired tests take out, hides differences.

    Returns
    -------
    pandas.DataFrame
        Columns target, model, reference (an earlier system), metric, protocol, aggregation, tracks
        (with a score by every system), mean (difference model minus reference), ci_low, ci_high
        (level 1 - alpha; dB), p_difference (for the family of an instrument's pairs); missing
        where fewer than 2 tracks are left.
    """
    tracks, rows = analysis.track_scores(scores, measure), []
    systems = [system for system in TRAINED if system in set(tracks["model"])]
    for target in INSTRUMENTS:
        own = tracks[(tracks["target"] == target) & tracks["model"].isin(systems)]
        wide = own.pivot_table(index="track", columns="model", values="value", dropna=False)
        wide = wide.reindex(columns=systems).dropna()
        values = np.full((4, len(systems), len(systems)), np.nan)
        if len(wide) > 1 and len(systems) > 1:
            test = scipy.stats.tukey_hsd(*wide.to_numpy().T)
            bounds = test.confidence_interval(1 - statistics.alpha)
            values = np.stack([test.statistic, bounds.low, bounds.high, test.pvalue])
        for first, second in itertools.combinations(range(len(systems)), 2):
            names = (target, systems[second], systems[first], len(wide))
            rows.append((*names, *values[:, second, first]))
    columns = ["target", "model", "reference", "tracks", "mean", "ci_low", "ci_high"]
    table = pd.DataFrame(rows, columns=[*columns, "p_difference"])
    return analysis.defined(table, measure, after="reference")
