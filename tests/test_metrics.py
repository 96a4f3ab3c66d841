"""Scores of one track, against values worked out by hand and against museval called directly."""

from types import SimpleNamespace

import numpy as np
import pytest

from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import metrics
from cunet_lib.evaluation.metrics import Measure
from cunet_lib.signal.audio import ensure_ffmpeg

RATE = 2048


def framed(rate, *, hop=1.0):
    """Settings with frames of a second."""
    evaluate = SimpleNamespace(window_seconds=1.0, hop_seconds=hop)
    return SimpleNamespace(signal=SimpleNamespace(sample_rate=rate), evaluate=evaluate)


SETTINGS = framed(RATE)


@pytest.fixture
def song(rng):
    """Four noises, three seconds, estimates with some of the others in them, and their mixture."""
    references = rng.normal(size=(4, 3 * RATE)) * np.array([[1.0], [0.5], [2.0], [1.0]])
    leak = references.sum(axis=0) - references
    estimates = 0.9 * references + 0.1 * leak + 0.05 * rng.normal(size=references.shape)
    return references.sum(axis=0), references, estimates


def test_v3_is_musevals_own_on_target_and_accompaniment(song):
    ensure_ffmpeg()
    from museval.metrics import bss_eval

    mixture, references, estimates = song
    ours = metrics.bss_eval_v3(mixture, references, estimates, SETTINGS)
    for place in range(4):
        sources = np.stack([references[place], mixture - references[place]])
        given = np.stack([estimates[place], mixture - estimates[place]])
        sdr, isr, sir, sar, _ = bss_eval(
            sources[..., None],
            given[..., None],
            window=np.inf,
            hop=np.inf,
            compute_permutation=False,
            framewise_filters=True,
            bsseval_sources_version=True,
        )
        assert ours[:, place] == pytest.approx([sdr[0, 0], sir[0, 0], sar[0, 0]], abs=1e-6)
        assert np.isnan(isr).all()


def test_v3_sees_neither_gain_nor_filter_and_v4_sees_gain(song):
    mixture, references, estimates = song
    v3 = metrics.bss_eval_v3(mixture, references, estimates, SETTINGS)
    gained = metrics.bss_eval_v3(mixture, references, 0.3 * estimates, SETTINGS)
    assert gained == pytest.approx(v3, abs=1e-6)
    delayed = np.pad(references, ((0, 0), (3, 0)))[:, : references.shape[1]]
    assert (metrics.bss_eval_v3(mixture, references, delayed, SETTINGS)[0] > 30).all()
    loud, quiet = (
        metrics.frame_sdr(mixture, references, given, SETTINGS)
        for given in (estimates, 0.3 * estimates)
    )
    assert (quiet < loud - 2).all()


def test_v3_of_the_mixture_has_no_artifacts(song):
    mixture, references, _ = song
    values = metrics.bss_eval_v3(mixture, references, np.stack([mixture] * 4), SETTINGS)
    assert np.isfinite(values[:2]).all()
    assert (values[2] == np.inf).all()
    # All that is wrong with it is the other instruments.
    assert values[0] == pytest.approx(values[1], abs=1e-3)


@pytest.mark.parametrize("silent", ["target", "estimate", "accompaniment"])
def test_v3_of_silence_is_undefined_and_an_unaccompanied_target_is_not(song, silent):
    mixture, references, estimates = song
    if silent == "accompaniment":
        mixture, references = references[0], references * np.array([[1], [0], [0], [0]])
    else:
        (references if silent == "target" else estimates)[0] = 0.0
    values = metrics.bss_eval_v3(mixture, references, estimates, SETTINGS)
    lost = [True] + [False] * 3 if silent != "accompaniment" else [False] + [True] * 3
    assert np.isnan(values).all(axis=0).tolist() == lost
    assert np.isfinite(values[0]).tolist() == [not gone for gone in lost]


def test_whole_sdr_by_its_definition():
    reference = np.array([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    values = metrics.whole_sdr(reference, reference * 0.9)
    assert values[0] == pytest.approx(20.0)
    assert np.isnan(values[1])
    assert metrics.whole_sdr(reference, reference)[0] == np.inf


def test_si_sdr_by_its_definition():
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    noise = np.array([1.0, 1.0, -1.0, -1.0])  # orthogonal to it
    for gain in (1.0, 0.01, -3.0):
        assert metrics.si_sdr(reference, gain * (reference + 0.1 * noise)) == pytest.approx(20.0)
    assert metrics.si_sdr(reference, noise) == -np.inf
    assert metrics.si_sdr(reference, 0.5 * reference) == np.inf
    assert np.isnan(metrics.si_sdr(reference, 0 * noise))
    assert np.isnan(metrics.si_sdr(0 * reference, noise))


def test_rounding_keeps_framewise_filters_sound(rng):
    """Signals without anything in their top octave, as resampled music: interference of -20 dB."""
    rate, spectra = 8192, rng.normal(size=(4, 2, 4 * 4096 + 1))
    spectra[..., 2 * 4096 :] = 0
    references = np.fft.irfft(spectra[:, 0] + 1j * spectra[:, 1])
    references *= 0.1 / references.std(axis=1, keepdims=True)
    estimates = references + 0.1 * np.roll(references, 1, axis=0)
    pcm = metrics.as_pcm(references), metrics.as_pcm(estimates)
    assert np.abs(pcm[0] - references).max() <= 2**-16
    mixture = references.sum(axis=0)
    sdr, isr, sir, sar = metrics.bss_eval_v4(mixture, *pcm, framed(rate))
    assert np.median(sdr) == pytest.approx(20, abs=0.5)
    assert sir == pytest.approx(20, abs=0.5)
    assert isr.min() > 25 and sar.min() > 25
    # Without it the filters run free: by 8 to 36 dB, as the last bits of a matrix product have it.
    free = metrics.bss_eval_v4(mixture, references, estimates, framed(rate))[2]
    assert np.abs(free - 20).max() > 5


def test_frame_sdr_is_musevals_v4(song):
    mixture, references, estimates = song
    references[1, :RATE] = 0.0
    references[3] = 0.0
    estimates[0, RATE : 2 * RATE] = 0.0
    for hop in (1.0, 0.5):
        frames = framed(RATE, hop=hop)
        museval = metrics.bss_eval_v4(mixture, references, estimates, frames)[0]
        ours = metrics.frame_sdr(mixture, references, estimates, frames)
        assert ours == pytest.approx(museval, abs=6e-6, nan_ok=True)
        assert np.isnan(ours).any() and np.isfinite(ours).any()


def test_energy_at_silence_by_its_definition():
    mixture = np.array([2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0])
    references = np.array([[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0], mixture])
    estimates = np.array([[0.2, 0.2, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0], mixture])
    (pes, none), (eps, nothing) = metrics.energy_at_silence(
        mixture, references, estimates, framed(2)
    )
    # A hundredth of the energy, and silence; the third frame has no mixture to compare with.
    gone = np.nan
    assert pes == pytest.approx([-20.0, gone, gone, metrics.FLOOR], nan_ok=True)
    assert eps == pytest.approx([gone, 0.0, gone, gone], nan_ok=True)
    assert np.isnan([none, nothing]).all()


def found(table, target, measure):
    """Value, frames and undefined frames of one measure."""
    row = measure.rows(table).set_index("target").loc[target]
    return row["value"], row["frames"], row["undefined_frames"]


def test_rows_hold_every_metric_and_count_what_is_undefined(song):
    mixture, references, estimates = song
    references[0] = 0.0
    references[2, RATE:] = 0.0
    table = metrics.track_rows(mixture, references, estimates, SETTINGS)
    assert tuple(table) == metrics.SCORE_COLUMNS[3:]
    assert not table.duplicated(["target", "metric", "protocol", "aggregation"]).any()
    assert len(table) == 4 * (4 + 3 + 1 + 1 + 1 + 2) + 1
    for metric in ("SDR", "SIR", "SAR"):
        v3 = Measure(metric, "BSS Eval v3", "whole track")
        assert found(table, "bass", v3)[1:] == (1, 1) and found(table, "drums", v3)[1:] == (1, 0)
    assert np.isnan(found(table, "bass", Measure("SDR", "SI-SDR", "whole track"))[0])
    silence = Measure("PES", "energy at silence", "mean over silent frames")
    assert found(table, "other", silence)[1:] == (3, 1)
    assert found(table, "bass", silence)[1:] == (3, 0)
    assert np.isnan(found(table, "vocals", silence)[0])
    assert found(table, "vocals", silence)[1:] == (3, 3)
    consistency = found(table, "mixture", Measure("sum SDR", "plain SDR", "whole track"))[0]
    error = np.sum((mixture - estimates.sum(axis=0)) ** 2)
    assert consistency == pytest.approx(10 * np.log10(np.sum(mixture**2) / error))


@pytest.mark.parametrize("silent", ["frames", "reference", "estimate", "everything"])
def test_silence_is_undefined_in_v4_and_spares_the_others(rng, silent):
    references = rng.normal(size=(4, 4 * RATE))
    estimates = references + 0.1 * rng.normal(size=references.shape)
    if silent == "everything":
        references[:] = 0.0
    elif silent == "frames":
        references[3, : 2 * RATE] = 0.0
    else:
        (references if silent == "reference" else estimates)[0] = 0.0
    table = metrics.track_rows(
        references.sum(axis=0), references, estimates, SETTINGS, metrics=[Measure().entry]
    )
    assert set(table["frames"]) == {4}
    if silent == "frames":  # of one instrument: museval leaves them undefined for all
        assert set(table["undefined_frames"]) == {2}
        assert table.query("metric == 'SDR'")["value"].between(15, 25).all()
    else:
        lost = table["target"].eq("bass") | (silent == "everything")
        assert table["value"].isna().equals(lost)
        assert (table["undefined_frames"] == table["frames"]).equals(lost)


def test_residual_is_what_the_estimate_leaves(song):
    mixture, references, _ = song
    half = 0.5 * references
    table = metrics.track_rows(mixture, references, half, SETTINGS)
    for place, target in enumerate(INSTRUMENTS):
        residual = mixture - references[place]
        expected = 10 * np.log10(np.sum(residual**2) / np.sum(half[place] ** 2))
        values = {
            measure.heading: found(table, target, measure)[0]
            for measure in metrics.FURTHER
            if target in measure.entry.targets
        }
        assert values["Residual SDR"] == pytest.approx(expected)
        assert values["Plain SDR"] == pytest.approx(10 * np.log10(4))
        assert values["SI-SDR"] == np.inf
