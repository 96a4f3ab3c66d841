"""Masks above what a network hears: each instrument's share of cymbals, sibilants and air.

A network of the study hears nothing above half the study rate. A small one goes on from there: two
hidden layers, the same for every frame. They read how loud the instruments' estimates are in bands
below, and the mixture in bands above (:mod:`cunet_lib.signal.bands`).
:mod:`cunet_lib.train.highs` teaches it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.special

from cunet_lib.core.files import damaged
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.signal.bands import ABOVE, INPUTS, features

FILE = "highs.npz"
"""Weights beside a model: kernel and bias of each layer."""


class Highs:
    """The small network, ready to be asked.

    Raises
    ------
    ConfigError
        If its file is damaged.
    """

    def __init__(self, path: Path):
        try:
            with np.load(path, allow_pickle=False) as file:
                weights = [file[name].astype(np.float32) for name in file.files]
            # The last size of each layer is the first of the next.
            sizes = [INPUTS, *map(len, weights[1::2])]
            shapes = [shape for pair in pairwise(sizes) for shape in (pair, pair[1:])]
            fits = [weight.shape for weight in weights] == shapes
            whole = all(np.isfinite(weight).all() for weight in weights)
        except Exception as error:  # of an archive that was changed: a dozen kinds
            raise damaged(path, "it holds no arrays", "make beyond") from error
        if not (fits and whole and sizes[-1] == ABOVE * len(INSTRUMENTS)):
            raise damaged(path, "its arrays are not those of the network", "make beyond")
        self._layers = list(zip(weights[::2], weights[1::2], strict=True))

    def __call__(self, shares: np.ndarray, magnitude: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Shares of the bands above.

        Parameters
        ----------
        shares, magnitude, above
            As of :func:`cunet_lib.signal.bands.features`.

        Returns
        -------
        numpy.ndarray
            ``(instruments, bands, frames)`` float32; they add up to one.
        """
        x = features(shares, magnitude, above)
        for kernel, bias in self._layers[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        kernel, bias = self._layers[-1]
        logits = (x @ kernel + bias).reshape(-1, ABOVE, len(INSTRUMENTS))
        return scipy.special.softmax(logits, axis=-1).transpose(2, 1, 0)
