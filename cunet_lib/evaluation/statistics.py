"""Inference from paired scores: intervals, tests, equivalence within a margin, and power.

The question of the study is one of equivalence, which a missing difference does not show. So each
comparison of a C-U-Net with the dedicated U-Nets is put to two tests, and a verdict in words says
what they give together:

* a difference: Wilcoxon's signed-rank test over tracks, corrected by Holm's method over the family
  of all comparisons in the table, together with an interval of the mean that leaves out zero;
* equivalence: two one-sided t-tests (TOST; Schuirmann 1987) of the mean difference against a
  margin stated beforehand, the setting ``statistics.margin_db``.

Tracks and seeds are crossed. A run is one seed's training of a model, and every run scores every
track: a hard track is hard for all runs, and a lucky run is lucky on all tracks. (Seeds would be
nested in tracks only if each track had runs of its own.) The difference of seed s in track t is
that of the runs with this seed; which run of the one system is paired with which of the other does
not matter, since they are trained independently. It is modelled as mean + track + seed +
remainder, so that the mean's variance is

    var(track) / tracks + var(seed) / seeds + var(remainder) / (tracks * seeds)

and tracks alone, however many, do not bring it below var(seed) / seeds. With a single seed the
second part cannot be seen: all statements then hold for the runs at hand, which captions say.

References: Clark 1973, The language-as-fixed-effect fallacy (crossed random factors, min F');
McCullagh 2000, Resampling and exchangeable arrays, and Owen 2007, The pigeonhole bootstrap (both
factors are resampled independently, which is mildly conservative); Holm 1979; Phillips 1990,
Power of the two one-sided tests procedure; Berger 1982 (intersection-union tests).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from cunet_lib.core.settings import ConfigError, Statistics
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import PROTOCOL
from cunet_lib.evaluation.scores import AGGREGATION, TARGETS, TRAINED

EQUIVALENT = "equivalent"
VERDICTS = (
    EQUIVALENT,
    "equivalent (better by less than the margin)",
    "equivalent (worse by less than the margin)",
    "better",
    "worse",
    "undecided",
)
"""What :func:`verdict` can say."""

MOST_TRACKS, MOST_SEEDS = 10_000, 1_000
"""Beyond these numbers, :func:`power_table` says that no number suffices."""

SMALL = 1e-18
"""Variances up to this (dB squared) are rounding."""


def _seeds(scores: pd.DataFrame, systems: Sequence[str]) -> list[int]:
    """Seeds of the trained systems among ``systems``; they must have the same."""
    of = {
        system: sorted(set(scores.loc[scores["model"] == system, "seed"]))
        for system in systems
        if system in TRAINED
    }
    first = next(iter(of), None)
    for system, seeds in of.items():
        if seeds != of[first]:
            raise ConfigError(
                f"{first} has scores of the seeds {_listed(of[first])}, {system} of "
                f"{_listed(seeds)}; run `make reproduce SEEDS='...'` with the same for all."
            )
    return of[first] if first else []


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def crossed_differences(
    scores: pd.DataFrame,
    *,
    reference: str = "unet",
    models: Sequence[str] | None = None,
    metric: str = "SDR",
    aggregation: str = AGGREGATION,
    protocol: str = PROTOCOL,
) -> pd.DataFrame:
    """Differences model minus reference for each track and seed.

    A system without seeds of its own, such as the mixture, is paired with every seed.

    Returns
    -------
    pandas.DataFrame
        Columns model, target, track, seed, difference (dB; missing where either system has no
        score); targets and their mean ``"all"`` as in
        :func:`cunet_lib.evaluation.scores.paired_differences`.

    Raises
    ------
    ConfigError
        If there are no scores of the reference or of a model, their tracks differ, or their seeds.
    """
    if models is None:
        there = set(scores["model"])
        models = [model for model in TRAINED if model != reference and model in there]
    frames = []
    for seed in _seeds(scores, (reference, *models)):
        chosen = scores[(scores["seed"] == seed) | ~scores["model"].isin(TRAINED)]
        pairs = analysis.paired_differences(
            chosen,
            reference=reference,
            models=models,
            metric=metric,
            aggregation=aggregation,
            protocol=protocol,
        )
        frames.append(pairs[["model", "target", "track", "difference"]].assign(seed=seed))
    if not frames:
        raise ConfigError(f"There are no trained systems to compare with {reference}.")
    return pd.concat(frames, ignore_index=True)


def seed_spread(
    scores: pd.DataFrame,
    *,
    by_target: bool = False,
    metrics: Sequence[str] = ("SDR",),
    aggregation: str = AGGREGATION,
    protocol: str = PROTOCOL,
) -> pd.DataFrame:
    """Spread over training runs: the mean over tracks of each seed, and its deviation over seeds.

    Returns
    -------
    pandas.DataFrame
        Columns model, target, metric, seeds, seed_std (dB, ddof 1); trained systems with several
        seeds only, so no rows for a study with one.
    """
    trained = scores[scores["model"].isin(TRAINED)]
    frames = [
        analysis.summary(
            group, by_target=by_target, metrics=metrics, aggregation=aggregation, protocol=protocol
        )
        for _, group in trained.groupby("seed")
    ]
    columns = ["model", "target", "metric", "seeds", "seed_std"]
    if len(frames) < 2:
        return pd.DataFrame(columns=columns)
    spread = (
        pd.concat(frames)
        .groupby(["model", "target", "metric"], as_index=False, sort=False)
        .agg(seeds=("mean", "count"), seed_std=("mean", "std"))
    )
    return spread.loc[spread["seeds"] > 1, columns].reset_index(drop=True)


# ------------------------------------------------------------------------------ intervals and tests


def crossed_interval(
    values: np.ndarray, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap confidence interval of the mean over tracks and seeds.

    With several seeds, tracks and seeds are drawn with replacement, independently of each other,
    and the interval lies between percentiles of the means over the drawn cells (the pigeonhole
    bootstrap; see the module). With one seed, the BCa interval over tracks of
    :func:`cunet_lib.evaluation.scores.bootstrap_interval`. Few seeds say little about their spread: with
    ``k`` of them its variance enters with ``(k - 1) / k`` of its size.

    Parameters
    ----------
    values
        ``(tracks, seeds)``; may have missing values.

    Returns
    -------
    tuple of float
        Lower and upper bound in the unit of ``values``; both missing for fewer than 3 tracks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values).any(axis=1)]
    tracks, seeds = values.shape
    if seeds == 1 or tracks < 3:
        return analysis.bootstrap_interval(
            np.nanmean(values, axis=1) if tracks else np.array([]),
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(number, np.full(number, 1 / number), size=resamples)
        for number in (tracks, seeds)
    ]
    known = np.isfinite(values)
    sums, cells = (
        (drawn[0] @ cell * drawn[1]).sum(axis=1)
        for cell in (np.where(known, values, 0.0), known.astype(float))
    )
    means = sums[cells > 0] / cells[cells > 0]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
    if not len(values):
        return float("nan")
    if not values.any():
        return 1.0
    with warnings.catch_warnings():
        # With ties or zeros SciPy may have to approximate, and says so.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.wilcoxon(values).pvalue)


def equivalence(values: np.ndarray, margin: float) -> float:
    """Test whether the mean is within ``± margin``: p value of two one-sided t-tests (TOST).

    The larger p value of the tests against ``mean <= -margin`` and ``mean >= margin``. With one
    seed these are one-sample t-tests over tracks. With several they allow for the variance of both
    tracks and seeds: the squared standard error is the sum of those over tracks (of their means
    over seeds) and over seeds (of their means over tracks), degrees of freedom after Satterthwaite.
    That is Clark's min F' for one mean, and the formula of Welch's t-test, by which SciPy computes
    it. It counts the remainder twice, so it is conservative.

    Parameters
    ----------
    values
        Differences ``(tracks, seeds)``; may have missing values.
    margin
        Above 0, in the unit of ``values``.

    Returns
    -------
    float
        Missing for fewer than 2 tracks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values).any(axis=1)]
    if len(values) < 2:
        return float("nan")
    over_seeds = np.nanmean(values, axis=1)
    sides = ((-margin, "greater"), (margin, "less"))
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Equal differences have no spread: SciPy warns, and gives the right limit of p.
        warnings.simplefilter("ignore", RuntimeWarning)
        if values.shape[1] == 1:
            tests = [
                scipy.stats.ttest_1samp(over_seeds, bound, alternative=side)
                for bound, side in sides
            ]
        else:
            over_tracks = np.nanmean(values, axis=0)
            tests = [
                scipy.stats.ttest_ind_from_stats(
                    over_seeds.mean() - bound,
                    over_seeds.std(ddof=1),
                    len(over_seeds),
                    0.0,
                    over_tracks.std(ddof=1),
                    len(over_tracks),
                    equal_var=False,
                    alternative=side,
                )
                for bound, side in sides
            ]
    return float(np.max([test.pvalue for test in tests]))


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
    """Both tests in words, one of :data:`VERDICTS`.

    There is a difference if the corrected p value is at most ``alpha`` and the interval of the
    mean leaves out zero; its sign is the interval's. There is equivalence if the p value of TOST
    is at most ``alpha``. Equivalence comes first, since a difference below the margin was called
    unimportant beforehand; its sign is then added: "equivalent (worse by less than the margin)".
    "better" and "worse" say that there is a difference and that it may be as large as the margin
    or larger; "undecided" that neither was shown.

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
        return f"{EQUIVALENT} ({side} by less than the margin)" if differs else EQUIVALENT
    return side if differs else "undecided"


def comparison_table(
    scores: pd.DataFrame,
    statistics: Statistics,
    *,
    reference: str = "unet",
    models: Sequence[str] | None = None,
    metric: str = "SDR",
    resamples: int = 9999,
    seed: int = 0,
    aggregation: str = AGGREGATION,
    protocol: str = PROTOCOL,
) -> pd.DataFrame:
    """Paired differences per model and target, tested.

    The family of Holm's correction is every row of this table: all models, each instrument and
    their mean. The p values of TOST are not corrected: that a model is equivalent throughout takes
    all of its rows, and such a claim keeps its level without correction (Berger 1982); a row that
    is picked out afterwards does not.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`cunet_lib.evaluation.scores.difference_table` (``mean`` to ``median`` over
        tracks, after a mean over seeds; ``ci_low`` and ``ci_high`` as :func:`crossed_interval`
        gives them, confidence 1 - alpha), then seeds, seed_std (dB, of the mean over tracks; only
        with several seeds), margin_db, p_difference (corrected), p_equivalence, verdict.

    Raises
    ------
    ConfigError
        As :func:`crossed_differences` does.
    """
    chosen = {
        "reference": reference,
        "models": models,
        "metric": metric,
        "aggregation": aggregation,
        "protocol": protocol,
    }
    cells = crossed_differences(scores, **chosen)
    bootstrap = {"confidence": 1 - statistics.alpha, "resamples": resamples, "seed": seed}
    table = analysis.difference_table(scores, **chosen, **bootstrap)
    rows = []
    for model, target in zip(table["model"], table["target"], strict=True):
        values = _matrix(cells, model, target)
        known = values[np.isfinite(values).any(axis=1)]
        row = {"seeds": values.shape[1]}
        if values.shape[1] > 1:
            row["ci_low"], row["ci_high"] = crossed_interval(values, **bootstrap)
            row["seed_std"] = np.nanmean(known, axis=0).std(ddof=1) if len(known) else np.nan
        row["margin_db"] = statistics.margin_db
        row["p_difference"] = signed_rank(np.nanmean(known, axis=1))
        row["p_equivalence"] = equivalence(values, statistics.margin_db)
        rows.append(row)
    for column, values in pd.DataFrame(rows).items():
        table[column] = values.to_numpy()
    table["p_difference"] = holm(table["p_difference"])
    table["verdict"] = [
        verdict(*facts, statistics.alpha)
        for facts in table[["ci_low", "ci_high", "p_difference", "p_equivalence"]].itertuples(
            index=False
        )
    ]
    return table


def _matrix(cells: pd.DataFrame, model: str, target: str) -> np.ndarray:
    """Differences ``(tracks, seeds)`` of one model and target."""
    chosen = cells[(cells["model"] == model) & (cells["target"] == target)]
    wide = chosen.pivot_table(index="track", columns="seed", values="difference", dropna=False)
    return wide.to_numpy(float)


# ------------------------------------------------------------------------------ power


def variance_components(values: np.ndarray) -> tuple[float, float, float]:
    """Variances of tracks, of seeds and of the remainder, by analysis of variance.

    Parameters
    ----------
    values
        ``(tracks, seeds)``; tracks with missing values are left out.

    Returns
    -------
    tuple of float
        In squared units of ``values``, none below 0. With one seed all of the variance counts as
        the tracks' and the others are 0. Missing for fewer than 2 tracks.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values).all(axis=1)]
    tracks, seeds = values.shape
    if tracks < 2:
        return (float("nan"),) * 3
    if seeds == 1:
        return float(values.var(ddof=1)), 0.0, 0.0
    over_seeds, over_tracks = values.mean(axis=1), values.mean(axis=0)
    remainder = values - over_seeds[:, None] - over_tracks + values.mean()
    error = float((remainder**2).sum() / ((tracks - 1) * (seeds - 1)))
    track = max(0.0, float(over_seeds.var(ddof=1)) - error / seeds)
    seed = max(0.0, float(over_tracks.var(ddof=1)) - error / tracks)
    return track, seed, error


def equivalence_power(
    components: Sequence[float],
    tracks: int,
    seeds: int,
    *,
    margin: float,
    alpha: float,
    difference: float = 0.0,
) -> float:
    """Chance that :func:`equivalence` gives at most ``alpha``.

    The mean is normal, the squared standard error a scaled chi-squared variable that is
    independent of it; their joint probability of passing both tests is integrated numerically.
    Exact with one seed (the power of TOST after Phillips 1990); with several, as good as
    Satterthwaite's approximation.

    Parameters
    ----------
    components
        Variances of tracks, seeds and remainder, as :func:`variance_components` gives them.
    tracks, seeds
        How many there would be.
    margin, alpha
        Of the test.
    difference
        True mean difference; 0 is the best case.

    Returns
    -------
    float
        Between 0 and 1; missing if a variance is.
    """
    track, seed, remainder = components
    if not np.isfinite([track, seed, remainder]).all():
        return float("nan")
    if tracks < 2:
        return 0.0
    error = remainder / (tracks * seeds)
    over_tracks, freedom, true = track / tracks + error, tracks - 1.0, track / tracks + error
    squared = over_tracks
    if seeds > 1:
        over_seeds = seed / seeds + error
        squared, true = over_tracks + over_seeds, over_tracks + over_seeds - error
        if squared > SMALL:
            freedom = squared**2 / (over_tracks**2 / (tracks - 1) + over_seeds**2 / (seeds - 1))
    if squared <= SMALL:
        return float(abs(difference) < margin)
    # Mid-quantiles of the standard error: an average over them is the integral over its density.
    shares = (np.arange(1000) + 0.5) / 1000
    errors = np.sqrt(squared * scipy.stats.chi2.ppf(shares, freedom) / freedom)
    room = margin - scipy.stats.t.ppf(1 - alpha, freedom) * errors
    spread = np.sqrt(true)
    inside = scipy.stats.norm.cdf((room - difference) / spread)
    outside = scipy.stats.norm.cdf((-room - difference) / spread)
    return float(np.where(room > 0, inside - outside, 0.0).mean())


def _fewest(power_of, goal: float, most: int) -> float:
    """Smallest number from 2 to ``most`` whose power reaches the goal; missing if none does."""
    if not power_of(most) >= goal:
        return float("nan")
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= goal else (middle, high)
    return float(high)


def power_table(
    scores: pd.DataFrame,
    statistics: Statistics,
    *,
    reference: str = "unet",
    models: Sequence[str] | None = None,
    metric: str = "SDR",
    aggregation: str = AGGREGATION,
    protocol: str = PROTOCOL,
) -> pd.DataFrame:
    """What the comparisons can show at the variance seen: power, and the numbers needed.

    All for a true difference of 0, so for the best case; any true difference needs more.

    Returns
    -------
    pandas.DataFrame
        Columns model, reference, target, metric, protocol, aggregation, margin_db, tracks, seeds
        (at hand), track_std_db, seed_std_db, remainder_std_db (the roots of
        :func:`variance_components`), power (with these tracks and seeds), tracks_needed (with
        these seeds) and seeds_needed (with these tracks) for ``statistics.power``: missing where
        no number up to :data:`MOST_TRACKS` or :data:`MOST_SEEDS` suffices. The seeds' columns are
        there only with several seeds.
    """
    chosen = {
        "reference": reference,
        "models": models,
        "metric": metric,
        "aggregation": aggregation,
        "protocol": protocol,
    }
    cells = crossed_differences(scores, **chosen)
    test = {"margin": statistics.margin_db, "alpha": statistics.alpha}
    rows = []
    for model in [model for model in TRAINED if model in set(cells["model"])]:
        for target in [target for target in TARGETS if target in set(cells["target"])]:
            values = _matrix(cells, model, target)
            parts = variance_components(values)
            tracks, seeds = int(np.isfinite(values).all(axis=1).sum()), values.shape[1]
            several = seeds > 1

            def with_tracks(number, parts=parts, seeds=seeds):
                return equivalence_power(parts, number, seeds, **test)

            def with_seeds(number, parts=parts, tracks=tracks):
                return equivalence_power(parts, tracks, number, **test)

            row = {"model": model, "reference": reference, "target": target, "metric": metric}
            row |= {"protocol": protocol, "aggregation": aggregation}
            row |= {"margin_db": statistics.margin_db, "tracks": tracks, "seeds": seeds}
            row["track_std_db"] = float(np.sqrt(parts[0]))
            if several:
                row["seed_std_db"], row["remainder_std_db"] = map(float, np.sqrt(parts[1:]))
            row["power"] = with_tracks(tracks)
            row["tracks_needed"] = _fewest(with_tracks, statistics.power, MOST_TRACKS)
            if several:
                row["seeds_needed"] = _fewest(with_seeds, statistics.power, MOST_SEEDS)
            rows.append(row)
    return pd.DataFrame(rows)
