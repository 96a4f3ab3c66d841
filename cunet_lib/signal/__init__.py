"""Waveforms and spectrograms.

Enters: audio files of any kind, arrays of samples. Leaves: blocks of samples, spectrograms,
patches, and what notebooks show and play. May import: :mod:`cunet_lib.core`.
"""
