"""The STFT in arrays and graphs, patches, the magnitude scale, and what notebooks show."""

import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunet_lib.core.settings import Signal
from cunet_lib.signal import spectral
from cunet_lib.signal.display import spectrograms

SIGNAL = Signal()


@given(samples=st.integers(0, 5000), hop=st.sampled_from([64, 256, 512, 768]))
def test_stft_round_trip_keeps_length_and_values(samples, hop):
    signal = Signal(hop=hop)
    audio = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    again = spectral.istft(spectral.stft(audio, signal), signal, samples)
    assert again.shape == audio.shape
    np.testing.assert_allclose(again, audio, atol=1e-4)


@pytest.mark.parametrize("hop", [256, 768])
@pytest.mark.parametrize("samples", [600, 20 * 768])
def test_stft_and_inverse_agree_with_librosa(hop, samples, rng):
    signal = Signal(hop=hop)
    audio = rng.normal(size=samples).astype(np.float32)
    whole = np.pad(audio, (0, -samples % hop))
    expected = librosa.stft(whole, n_fft=1024, hop_length=hop, center=True, pad_mode="reflect")
    spectrogram = spectral.stft(audio, signal)
    np.testing.assert_allclose(spectrogram, expected, atol=2e-5)  # its edges are less exact
    changed = spectrogram * rng.random(spectrogram.shape, np.float32)
    expected = librosa.istft(changed, n_fft=1024, hop_length=hop, length=samples)
    np.testing.assert_allclose(spectral.istft(changed, signal, samples), expected, atol=1e-5)


@pytest.mark.parametrize("hop", [256, 768])
def test_graph_magnitude_agrees_with_librosa(hop, rng):
    signal = Signal(hop=hop)
    audio = rng.normal(size=20 * hop).astype(np.float32)
    expected = np.abs(
        librosa.stft(audio, n_fft=1024, hop_length=hop, center=True, pad_mode="reflect")
    )[:512]
    frames = expected.shape[1]
    padded = spectral.pad_centre(audio, signal)[: (frames - 1) * hop + 1024]
    patch = np.asarray(spectral.graph_magnitude(padded[None], signal))[0, ..., 0]
    assert patch.shape == expected.shape
    assert np.abs(patch - expected).max() <= 1e-4 * expected.max()


@given(
    total=st.integers(1, 300),
    frames=st.integers(1, 64),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]),
)
def test_joining_cut_patches_gives_the_spectrogram_back(total, frames, overlap):
    spectrogram = np.random.default_rng(total).random((5, total)).astype(np.float32)
    patches, starts = spectral.cut_patches(spectrogram, frames, overlap)
    assert patches.shape[1:] == (5, frames)
    joined = spectral.join_patches(patches, starts, total)
    np.testing.assert_allclose(joined, spectrogram, rtol=1e-5)


def test_overlapping_patches_fade_into_each_other():
    patches = np.stack([np.zeros((1, 8)), np.ones((1, 8))]).astype(np.float32)
    joined = spectral.join_patches(patches, [0, 4], 12)[0]
    assert (np.diff(joined) >= 0).all() and np.diff(joined).max() < 0.35
    hard = spectral.join_patches(patches, [0, 8], 16)[0]
    np.testing.assert_array_equal(hard, [0] * 8 + [1] * 8)


def test_scale_maps_magnitudes_into_one_and_survives_silence(rng):
    audio = rng.normal(size=8192).astype(np.float32)
    scale = spectral.magnitude_scale(audio, SIGNAL)
    assert np.abs(spectral.stft(audio, SIGNAL)).max() / scale == pytest.approx(1)
    assert spectral.magnitude_scale(np.zeros(8192), SIGNAL) == 1.0
    assert spectral.magnitude_scale(np.zeros(0), SIGNAL) == 1.0


def test_a_tone_and_silence_beside_it_are_drawn_on_one_scale():
    seconds = np.arange(2 * SIGNAL.sample_rate) / SIGNAL.sample_rate
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    figure = spectrograms({"tone": tone, "silence": np.zeros_like(tone)}, SIGNAL)
    heard, silent = (axis.images[0] for axis in figure.axes[:2])
    levels = heard.get_array()
    assert np.ma.count_masked(silent.get_array()) == 0  # silence is a colour, not a hole
    assert (silent.get_array() < heard.norm.vmin).all() and np.isfinite(silent.get_array()).all()
    assert heard.norm.vmin == silent.norm.vmin and levels.max() == 0
    # Rows are frequencies up to half the rate, columns time.
    left, right, low, high = heard.get_extent()
    row = levels.max(axis=1).argmax()
    step = (high - low) / (len(levels) - 1)
    assert abs(row * step - 1000) <= step
    assert (left, low, high) == (0, 0, SIGNAL.sample_rate / 2) and 2 <= right < 2.2
