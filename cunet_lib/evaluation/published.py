"""Published scores on MUSDB18, and which of them may stand beside the study's own.

``published_scores.csv``, beside this module, holds one row per system, metric and target, with the
protocol and the source as found there. Scores of different protocols differ by several dB for the
same estimates, so a row stands in one table with ours only if the words of its column ``protocol``
are those of :func:`our_protocol`: evaluation, aggregation, frames, sources, rate, channels and
tracks are equal then. Words that leave something open never are. Corpora other than MUSDB18 show
none of them.

To add scores, the paper's own tables for example, add rows to the file; nothing else, and
``tests/test_published.py`` checks them. Protocols need quotation marks around them, since they hold
commas. ``target`` is an instrument by its name here (the paper's "rest" is ``other``), or
``overall``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cunet_lib.core.settings import Profile
from cunet_lib.evaluation.metrics import MEDIAN, PROTOCOL, PROTOCOL_V3, WHOLE_TRACK, Measure

PATH = Path(__file__).with_name("published_scores.csv")

VALUES = ["mean_db", "std_db", "median_db"]
OVERALL = "overall"
"""Target of scores over all instruments."""


def load_published(path: Path = PATH) -> pd.DataFrame:
    """The published scores: mean_db, std_db and median_db in dB, missing where not published."""
    return pd.read_csv(path, keep_default_na=False, na_values={each: [""] for each in VALUES})


def our_protocol(settings: Profile, measure: Measure) -> str | None:
    """The study's scores by a measure, whose metric does not matter, in the words of the file.

    None for tracks other than MUSDB18's, and for measures that nobody publishes.
    """
    rate, evaluate = settings.signal.sample_rate, settings.evaluate
    frames = f"{evaluate.window_seconds:g} s frames"
    if evaluate.hop_seconds != evaluate.window_seconds:
        frames += f" every {evaluate.hop_seconds:g} s"
    return {
        ("musdb18", PROTOCOL_V3, WHOLE_TRACK): (
            "bss_eval_sources v3, whole track, 2 sources (target, accompaniment), "
            f"{rate} Hz mono, MUSDB18 test tracks"
        ),
        ("musdb18", PROTOCOL, MEDIAN): (
            f"museval BSSEval v4, median over {frames} then median over MUSDB18 test tracks, "
            f"{rate / 1000:g} kHz mono"
        ),
    }.get((settings.data.source, measure.protocol, measure.aggregation))
