"""What notebooks show of audio: spectrograms side by side, and players."""

from __future__ import annotations

import html
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Audio
from matplotlib.figure import Figure

from cunet_lib.core.settings import Signal
from cunet_lib.signal.spectral import decibels, stft


def spectrograms(audios: Mapping[str, np.ndarray], signal: Signal, *, columns: int = 3) -> Figure:
    """Draw magnitude spectrograms with common axes and colours.

    Parameters
    ----------
    audios
        Title to mono audio ``(samples,)`` at the study rate.
    signal
        Spectrogram settings.
    columns
        Pictures in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Levels in dB below the loudest point of all.
    """
    magnitudes = {title: np.abs(stft(audio, signal)) for title, audio in audios.items()}
    peak = max(float(magnitude.max()) for magnitude in magnitudes.values()) or 1.0
    step = signal.hop / signal.sample_rate
    columns = min(columns, len(audios))
    rows = -(-len(audios) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 2.6 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(audios) :]:
        axis.set_visible(False)
    for axis, (title, magnitude) in zip(axes.flat, magnitudes.items(), strict=False):
        image = axis.imshow(
            # Silence is the darkest colour, not a hole.
            decibels(magnitude, peak),
            origin="lower",
            aspect="auto",
            extent=(0, magnitude.shape[1] * step, 0, signal.sample_rate / 2),
            vmin=-80,
            vmax=0,
            cmap="magma",
        )
        axis.grid(visible=False)
        axis.set(title=title, xlabel="time (s)", ylabel="frequency (Hz)")
        axis.label_outer()
    figure.colorbar(image, ax=axes, label="level (dB)", format="%+.0f")
    plt.close(figure)
    return figure


def players(audios: Mapping[str, np.ndarray], rate: int) -> HTML:
    """Players of mono audio ``(samples,)`` at a rate in Hz, by title; the loudest at full scale."""
    peak = max(float(np.abs(audio).max(initial=0.0)) for audio in audios.values()) or 1.0
    rows = []
    for title, audio in audios.items():
        audio = np.asarray(audio, np.float32) / peak
        player = Audio(audio, rate=rate, normalize=False)._repr_html_()
        label = html.escape(title)
        rows.append(f"<tr><th style='text-align:left'>{label}</th><td>{player}</td></tr>")
    return HTML(f"<table>{''.join(rows)}</table>")
