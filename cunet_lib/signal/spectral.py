"""The study's short-time Fourier transform, in one place, for arrays and for graphs.

Conventions: periodic Hann window, centred frames (reflect padding), ``n_fft // 2 + 1`` bins of
which the models see all but the Nyquist bin (paper, section 4.1). Spectrograms of arrays are
``(bins, frames)``. A patch is ``frames`` consecutive frames; the waveform under it is
``(frames - 1) * hop + n_fft`` samples, which :func:`graph_magnitude` transforms without padding to
exactly those frames of the whole track's spectrogram.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from cunet_lib.core.settings import Signal


def stft(audio: np.ndarray, signal: Signal) -> np.ndarray:
    """Complex spectrogram of mono audio.

    Parameters
    ----------
    audio
        ``(samples,)`` at the study rate.

    Returns
    -------
    numpy.ndarray
        ``(n_fft // 2 + 1, 1 + ceil(samples / hop))`` complex64.
    """
    # Up to the next whole hop: the last samples then lie between two frame centres, where the
    # windows never vanish, so that the inverse restores them whatever the hop.
    audio = np.pad(np.asarray(audio, np.float32), (0, -audio.shape[-1] % signal.hop))
    padded = pad_centre(audio, signal)
    frames = np.lib.stride_tricks.sliding_window_view(padded, signal.n_fft)[:: signal.hop]
    # In double precision, as librosa's, to which it is equal; librosa itself takes two seconds to
    # be imported, in each of the study's many processes.
    return scipy.fft.rfft(frames * hann(signal.n_fft)).astype(np.complex64).T


def istft(spectrogram: np.ndarray, signal: Signal, length: int) -> np.ndarray:
    """Audio of exactly ``length`` samples from a complex spectrogram ``(bins, frames)``.

    Frames are windowed again, added up and divided by the sum of the squared windows: the
    least-squares inverse (Griffin and Lim 1984).
    """
    half, size, hop = signal.n_fft // 2, signal.n_fft, signal.hop
    window = hann(size)
    frames = scipy.fft.irfft(spectrogram.T.astype(np.complex128), size) * window
    count = len(frames)
    audio = np.zeros(max(half + length, (count - 1) * hop + size))
    weight = np.zeros_like(audio)
    for start, frame in zip(range(0, count * hop, hop), frames, strict=True):
        audio[start : start + size] += frame
        weight[start : start + size] += window**2
    audio, weight = audio[half : half + length], weight[half : half + length]
    heard = weight > np.finfo(np.float32).tiny
    return np.divide(audio, weight, out=audio, where=heard).astype(np.float32)


def at_rate(signal: Signal, rate: int) -> Signal:
    """The same for songs of another rate: windows and hops last as long as the study's.

    Sizes are rounded, that of a window to an even one that transforms quickly.
    """
    ratio = rate / signal.sample_rate
    size = 2 * scipy.fft.next_fast_len(-(-round(signal.n_fft * ratio) // 2), real=True)
    hop = max(1, round(signal.hop * ratio))
    return signal.model_copy(update={"sample_rate": rate, "n_fft": size, "hop": hop})


def hann(size: int) -> np.ndarray:
    """The study's window, ``(size,)`` float64: Hann, periodic."""
    return np.hanning(size + 1)[:-1]


def decibels(magnitude: np.ndarray, peak: float) -> np.ndarray:
    """Magnitudes in dB below a peak, for pictures; silence is -160 dB."""
    return 20 * np.log10(np.maximum(magnitude / peak, 1e-8))


def pad_centre(audio: np.ndarray, signal: Signal) -> np.ndarray:
    """Reflect-pad ``(..., samples)`` by half a window at both ends, as :func:`stft` does.

    Audio too short to be reflected is padded with silence.
    """
    half = signal.n_fft // 2
    mode = "reflect" if audio.shape[-1] > half else "constant"
    return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(half, half)], mode=mode)


def magnitude_scale(mixture: np.ndarray, signal: Signal) -> float:
    """Largest magnitude in the mixture's spectrogram; dividing by it maps magnitudes to [0, 1].

    1.0 for silence, so that the division is always defined.
    """
    return float(np.abs(stft(mixture, signal)).max(initial=0.0)) or 1.0


def loudest(audio: np.ndarray, length: int) -> int:
    """First sample of the stretch of ``length`` samples in which ``(samples,)`` is loudest."""
    energy = np.cumsum(np.concatenate([[0.0], audio.astype(float) ** 2]))
    length = min(length, len(audio))
    return int(np.argmax(energy[length:] - energy[: len(energy) - length]))


def graph_magnitude(audio, signal: Signal):
    """Magnitude patches of waveforms, inside the graph.

    Parameters
    ----------
    audio
        Tensor ``(batch, (frames - 1) * hop + n_fft)`` float32.

    Returns
    -------
    tensor
        ``(batch, n_fft // 2, frames, 1)`` float32, the Nyquist bin dropped.
    """
    import keras
    from keras import ops

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        magnitude = tf.abs(_tensorflow_stft(audio, signal))
        return ops.expand_dims(ops.transpose(magnitude[..., : signal.bins], (0, 2, 1)), -1)
    real, imaginary = graph_spectrum(audio, signal)
    return ops.expand_dims(ops.sqrt(real**2 + imaginary**2), -1)


def graph_spectrum(audio, signal: Signal):
    """Complex patches of waveforms, inside the graph; ``audio`` as of :func:`graph_magnitude`.

    Returns
    -------
    tuple
        Real and imaginary parts, each ``(batch, n_fft // 2, frames)`` float32.
    """
    import keras
    from keras import ops

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        frames = _tensorflow_stft(audio, signal)
        parts = tf.math.real(frames), tf.math.imag(frames)
    else:
        audio, size = ops.cast(audio, "float32"), signal.n_fft
        parts = ops.stft(audio, size, signal.hop, size, window="hann", center=False)
    return tuple(ops.transpose(part[..., : signal.bins], (0, 2, 1)) for part in parts)


def _tensorflow_stft(audio, signal: Signal):
    """Measured at more than twice the speed of ``keras.ops.stft`` on CPU."""
    import tensorflow as tf

    audio = tf.cast(audio, tf.float32)
    return tf.signal.stft(audio, signal.n_fft, signal.hop, window_fn=tf.signal.hann_window)


def cut_patches(spectrogram: np.ndarray, frames: int, overlap: float) -> tuple[np.ndarray, list]:
    """Cut a spectrogram into equal patches that cover all of it.

    Parameters
    ----------
    spectrogram
        ``(bins, total_frames)``.
    frames
        Frames of a patch.
    overlap
        Share of a patch that the next one repeats, 0 to below 1.

    Returns
    -------
    patches
        ``(patches, bins, frames)``; the last one is padded with zeros where needed.
    starts
        First frame of each patch.
    """
    total = spectrogram.shape[1]
    step = max(1, round(frames * (1.0 - overlap)))
    starts = list(range(0, max(total - frames, 0) + step, step))
    padded = np.pad(spectrogram, ((0, 0), (0, starts[-1] + frames - total)))
    return np.stack([padded[:, start : start + frames] for start in starts]), starts


def join_patches(patches: np.ndarray, starts: list, total: int) -> np.ndarray:
    """Cross-fade patches to one spectrogram: the inverse of :func:`cut_patches`.

    Overlapping frames are averaged with triangular weights, which fade one patch into the next;
    without overlap the patches are laid end to end.

    Parameters
    ----------
    patches
        ``(patches, bins, frames)``.
    starts
        First frame of each patch.
    total
        Frames to return.

    Returns
    -------
    numpy.ndarray
        ``(bins, total)`` float32.
    """
    _, bins, frames = patches.shape
    weight = np.minimum(np.arange(1, frames + 1), np.arange(frames, 0, -1)).astype(np.float32)
    joined = np.zeros((bins, starts[-1] + frames), np.float32)
    weights = np.zeros(starts[-1] + frames, np.float32)
    for patch, start in zip(patches, starts, strict=True):
        joined[:, start : start + frames] += patch * weight
        weights[start : start + frames] += weight
    return joined[:, :total] / weights[:total]
