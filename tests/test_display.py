"""What notebooks show of audio."""

import numpy as np

from cunet_lib.core.settings import Signal
from cunet_lib.signal.display import spectrograms


def test_a_tone_and_silence_beside_it_are_drawn_on_one_scale():
    signal = Signal()
    seconds = np.arange(2 * signal.sample_rate) / signal.sample_rate
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    figure = spectrograms({"tone": tone, "silence": np.zeros_like(tone)}, signal)
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
    assert (left, low, high) == (0, 0, signal.sample_rate / 2) and 2 <= right < 2.2
