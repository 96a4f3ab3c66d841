"""Scores of one track, against values worked out by hand and against museval called directly."""

import numpy as np
import pytest

from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import metrics as measures
from cunet_lib.evaluation.metrics import PROTOCOL_METRICS
from cunet_lib.preprocess.tracks import ensure_ffmpeg

RATE = 2048


@pytest.fixture
def song(rng):
    """Four noises, three seconds, estimates with some of the others in them, and their mixture."""
    references = rng.normal(size=(4, 3 * RATE)) * np.array([[1.0], [0.5], [2.0], [1.0]])
    leak = references.sum(axis=0) - references
    estimates = 0.9 * references + 0.1 * leak + 0.05 * rng.normal(size=references.shape)
    return references.sum(axis=0), references, estimates


def orthogonal(rng, signals, power):
    """Noise of a given power that correlates with none of the signals, in any lag of a filter."""
    taps, samples = 512, signals.shape[1]
    noise = rng.normal(size=samples)
    delayed = np.concatenate(
        [[np.roll(np.pad(one, (0, taps)), lag) for lag in range(taps)] for one in signals]
    )
    noise = np.pad(noise, (0, taps))
    basis, _ = np.linalg.qr(delayed.T)
    noise -= basis @ (basis.T @ noise)
    return np.sqrt(power / np.sum(noise**2)) * noise


def test_v3_of_a_reference_with_orthogonal_noise_is_the_ratio_of_their_energies(rng):
    references = np.pad(rng.normal(size=(2, 1500)), ((0, 0), (0, 512)))
    target, rest = references
    noise = orthogonal(rng, references[:, :1500], 0.01 * np.sum(target**2))
    mixture = target + rest
    values = measures.bss_eval_v3(mixture, target[None], (target + noise)[None])
    sdr, sir, sar = values[:, 0]
    assert sdr == pytest.approx(20.0, abs=0.05)
    assert sar == pytest.approx(20.0, abs=0.05)
    assert sir > 60


def test_v3_is_musevals_own_on_target_and_accompaniment(song):
    ensure_ffmpeg()
    from museval.metrics import bss_eval

    mixture, references, estimates = song
    ours = measures.bss_eval_v3(mixture, references, estimates)
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
    v3 = measures.bss_eval_v3(mixture, references, estimates)
    gained = measures.bss_eval_v3(mixture, references, 0.3 * estimates)
    assert gained == pytest.approx(v3, abs=1e-6)
    delayed = np.pad(references, ((0, 0), (3, 0)))[:, : references.shape[1]]
    assert (measures.bss_eval_v3(mixture, references, delayed)[0] > 30).all()
    frames = {"window": RATE, "hop": RATE}
    loud, quiet = (
        measures.frame_sdr(references, given, **frames) for given in (estimates, 0.3 * estimates)
    )
    assert (quiet < loud - 2).all()


def test_v3_of_the_mixture_has_no_artifacts(song):
    mixture, references, _ = song
    values = measures.bss_eval_v3(mixture, references, np.stack([mixture] * 4))
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
    values = measures.bss_eval_v3(mixture, references, estimates)
    lost = [True] + [False] * 3 if silent != "accompaniment" else [False] + [True] * 3
    assert np.isnan(values).all(axis=0).tolist() == lost
    assert np.isfinite(values[0]).tolist() == [not gone for gone in lost]


def test_whole_sdr_by_its_definition():
    reference = np.array([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    values = measures.whole_sdr(reference, reference * 0.9)
    assert values[0] == pytest.approx(20.0)
    assert np.isnan(values[1])
    assert measures.whole_sdr(reference, reference)[0] == np.inf


def test_si_sdr_by_its_definition():
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    noise = np.array([1.0, 1.0, -1.0, -1.0])  # orthogonal to it
    for gain in (1.0, 0.01, -3.0):
        assert measures.si_sdr(reference, gain * (reference + 0.1 * noise)) == pytest.approx(20.0)
    assert measures.si_sdr(reference, noise) == -np.inf
    assert measures.si_sdr(reference, 0.5 * reference) == np.inf
    assert np.isnan(measures.si_sdr(reference, 0 * noise))
    assert np.isnan(measures.si_sdr(0 * reference, noise))


def test_rounding_keeps_framewise_filters_sound(rng):
    """Signals without anything in their top octave, as resampled music: interference of -20 dB."""
    rate, spectra = 8192, rng.normal(size=(4, 2, 4 * 4096 + 1))
    spectra[..., 2 * 4096 :] = 0
    references = np.fft.irfft(spectra[:, 0] + 1j * spectra[:, 1])
    references *= 0.1 / references.std(axis=1, keepdims=True)
    estimates = references + 0.1 * np.roll(references, 1, axis=0)
    pcm = measures.as_pcm(references), measures.as_pcm(estimates)
    assert np.abs(pcm[0] - references).max() <= 2**-16
    sdr, isr, sir, sar = measures.bss_eval_v4(*pcm, window=rate, hop=rate)
    assert np.median(sdr) == pytest.approx(20, abs=0.5)
    assert sir == pytest.approx(20, abs=0.5)
    assert isr.min() > 25 and sar.min() > 25
    # Without it the filters run free: by 8 to 36 dB, as the last bits of a matrix product have it.
    free = measures.bss_eval_v4(references, estimates, window=rate, hop=rate)[2]
    assert np.abs(free - 20).max() > 5


def test_frame_sdr_is_musevals_v4(song):
    _, references, estimates = song
    references[1, :RATE] = 0.0
    references[3] = 0.0
    estimates[0, RATE : 2 * RATE] = 0.0
    for hop in (RATE, RATE // 2):
        frames = {"window": RATE, "hop": hop}
        museval = measures.bss_eval_v4(references, estimates, **frames)[0]
        ours = measures.frame_sdr(references, estimates, **frames)
        assert ours == pytest.approx(museval, abs=1e-6, nan_ok=True)
        assert np.isnan(ours).any() and np.isfinite(ours).any()


def test_energy_at_silence_by_its_definition():
    mixture = np.array([2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0])
    references = np.array([[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0], mixture])
    estimates = np.array([[0.2, 0.2, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0], mixture])
    (pes, eps), (none, nothing) = measures.energy_at_silence(
        mixture, references, estimates, window=2, hop=2
    )
    # A hundredth of the energy, and silence; the third frame has no mixture to compare with.
    assert pes == pytest.approx([-20.0, measures.FLOOR])
    assert eps == pytest.approx([0.0])
    assert len(none) == len(nothing) == 0


def test_rows_name_every_protocol_and_count_what_is_undefined(tones, song):
    mixture, references, estimates = song
    references[0] = 0.0
    references[2, RATE:] = 0.0
    rows = measures.further_rows(
        mixture, references, estimates, sample_rate=RATE, evaluate=tones[0].evaluate
    )
    for target, metric, protocol, *_ in rows:
        assert target in (*INSTRUMENTS, "mixture") and metric in PROTOCOL_METRICS[protocol]
    found = {row[:3]: row[3:] for row in rows}
    assert len(found) == len(rows) == 4 * (3 + 1 + 2 + 2) + 1
    for metric in ("SDR", "SIR", "SAR"):
        assert found["bass", metric, "BSS Eval v3"][2:] == (1, 1)
        assert found["drums", metric, "BSS Eval v3"][2:] == (1, 0)
    assert np.isnan(found["bass", "SDR", "SI-SDR"][1])
    aggregation, _, frames, undefined = found["other", "PES", "energy at silence"]
    assert (aggregation, frames, undefined) == ("mean over silent frames", 3, 1)
    assert found["bass", "PES", "energy at silence"][2:] == (3, 0)
    aggregation, value, frames, undefined = found["vocals", "PES", "energy at silence"]
    assert np.isnan(value) and (frames, undefined) == (3, 3)
    consistency = found["mixture", "sum SDR", "plain SDR"]
    assert consistency[0] == "whole track"
    error = np.sum((mixture - estimates.sum(axis=0)) ** 2)
    assert consistency[1] == pytest.approx(10 * np.log10(np.sum(mixture**2) / error))


def test_residual_is_what_the_estimate_leaves(tones, song):
    mixture, references, _ = song
    half = 0.5 * references
    rows = measures.whole_track_rows(mixture, references, half)
    found = {row[:3]: row[4] for row in rows}
    for place, target in enumerate(INSTRUMENTS):
        residual = mixture - references[place]
        expected = 10 * np.log10(np.sum(residual**2) / np.sum(half[place] ** 2))
        assert found[target, "residual SDR", "plain SDR"] == pytest.approx(expected)
        assert found[target, "SDR", "plain SDR"] == pytest.approx(10 * np.log10(4))
        assert found[target, "SDR", "SI-SDR"] == np.inf
