"""Strided convolutions with fewer multiplications, for training on processors.

Four outputs along one axis of a convolution with five taps and stride two take twenty
multiplications, or eleven: even and odd taps each see every other sample, and are two convolutions
with stride one, of three and of two taps. Each is a product of polynomials, found from the values
that the factors have at as many points as the product has coefficients (Toom 1963, Cook 1966;
Winograd 1980; Lavin and Gray 2016 for networks). Along both axes, 121 multiplications do the work
of 400.

What is saved must pay for the sums that lead to the points and back, which are bound by memory.
Multiplications grow with the channels of both sides and with the batch; sums over maps with either
side alone, and those over kernels not with the batch. With 64 channels and 16 patches it pays (see
:func:`pays`). The numbers are those of other convolutions but for rounding, which is one to eight
times theirs: a few millionths of outputs and gradients, in float32. Products in bfloat16 would have
to round the sums to its few digits, so that they go other ways.

Maps are ``(batch, height, width, channels)``, kernels 5 x 5, strides 2 and padding "same".
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

TAPS, STRIDE = 5, 2
LARGEST_TILE = 4
"""Most outputs along an axis of what is computed as one; more of them would cost digits."""

POINTS = (0.0, 1.0, -1.0, 2.0, -0.5)
"""Where polynomials are evaluated, in this order; besides them at infinity."""

FEWEST_CHANNELS = 64
LARGEST_MAP = 64
LARGEST_SHARE = 0.5
"""Where it pays: both sides have so many channels, the larger map is no higher or wider than this,
and no larger share of the multiplications is left."""


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of the larger of the two maps, cut into tiles.

    Attributes
    ----------
    tiles
        How many there are.
    samples
        ``(points * tiles, size)``: the points' values from the samples.
    taps
        ``(points, TAPS)``: the points' values from the kernel.
    sums
        ``(outputs of a tile, points)``: outputs from the points' products.
    """

    tiles: int
    samples: np.ndarray
    taps: np.ndarray
    sums: np.ndarray

    @property
    def points(self) -> int:
        return len(self.taps)

    @property
    def outputs(self) -> int:
        return len(self.sums)

    @property
    def share(self) -> float:
        """Of the multiplications, that are left."""
        return self.points / (TAPS * self.outputs)


@functools.cache
def _axis(size: int) -> _Axis:
    """The axis of ``size`` samples, an even number."""
    outputs = max(tile for tile in range(1, LARGEST_TILE + 1) if size // STRIDE % tile == 0)
    tiles = size // STRIDE // outputs
    samples, taps, sums = [], [], []
    for phase in range(STRIDE):
        own = np.zeros((len(range(phase, TAPS, STRIDE)), TAPS))
        own[np.arange(len(own)), np.arange(phase, TAPS, STRIDE)] = 1.0
        from_samples, from_taps, to_outputs = _toom_cook(outputs, len(own))
        # Tap t of output o is at sample 2 o + t - before; what lies outside is zero.
        before = (TAPS - STRIDE) // 2
        first = STRIDE * outputs * np.arange(tiles)[:, None] + phase - before
        places = first + STRIDE * np.arange(len(from_taps))
        picks = (places[..., None] == np.arange(size)).astype(float)
        samples.append(np.einsum("pk,iks->pis", from_samples, picks))
        taps.append(from_taps @ own)
        sums.append(to_outputs)
    points = np.concatenate(samples)
    return _Axis(tiles, points.reshape(-1, size), np.concatenate(taps), np.concatenate(sums, 1))


def _toom_cook(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of ``y[o] = sum over t of d[o + t] k[t]``, as ``y = C ((A d) * (B k))``.

    The product of polynomials with ``outputs`` and ``taps`` coefficients, whose values at the
    points are those of the factors multiplied, is the transposed problem.
    """
    count = outputs + taps - 1
    points = np.asarray(POINTS[: count - 1])

    def values(coefficients):
        finite = points[:, None] ** np.arange(coefficients)
        return np.concatenate([finite, np.eye(coefficients)[-1:]])

    from_samples = np.linalg.inv(values(count)).T
    # Points at which samples add up to large numbers lend them to the kernel, which is smaller.
    scale = np.abs(from_samples).max(axis=1, keepdims=True)
    return from_samples / scale, values(taps) * scale, values(outputs).T


def pays(height: int, width: int, kernel: tuple[int, ...]) -> bool:
    """Whether a training step gains by it, as measured with 16 to 64 patches on two cores.

    With four patches and fewer it loses, as what is done to the kernel is shared by few.

    Parameters
    ----------
    height, width
        Of the larger of the two maps, a convolution's input or a transposed one's output.
    kernel
        Shape ``(5, 5, channels of the larger map, channels of the smaller)``.
    """
    even = height % STRIDE == 0 and width % STRIDE == 0
    if not even or max(height, width) > LARGEST_MAP:
        return False
    few = _axis(height).share * _axis(width).share <= LARGEST_SHARE
    return few and kernel[:2] == (TAPS, TAPS) and min(kernel[2:]) >= FEWEST_CHANNELS


def convolved(maps, kernel):
    """The convolution of ``maps``, with height and width halved.

    Parameters
    ----------
    maps
        Tensor ``(batch, height, width, inputs)`` float32, height and width even.
    kernel
        ``(5, 5, inputs, outputs)`` float32.
    """
    import tensorflow as tf

    rows, columns = _axis(maps.shape[1]), _axis(maps.shape[2])
    points = _points_of_samples(maps, rows, columns)
    return _outputs(tf.matmul(points, _points_of_kernel(kernel, rows, columns)), rows, columns)


def transposed(maps, kernel):
    """The transposed convolution of ``maps``, with height and width doubled.

    Every sum of :func:`convolved` is taken the other way, from its end to its start.

    Parameters
    ----------
    maps
        Tensor ``(batch, height, width, inputs)`` float32.
    kernel
        ``(5, 5, outputs, inputs)`` float32.
    """
    import tensorflow as tf

    rows, columns = _axis(STRIDE * maps.shape[1]), _axis(STRIDE * maps.shape[2])
    points = _points_of_outputs(maps, rows, columns)
    factors = _points_of_kernel(kernel, rows, columns)
    return _samples(tf.matmul(points, factors, transpose_b=True), rows, columns)


# Values at the points are (points of columns, tiles, points of rows, tiles * batch, channels), so
# that matrices are multiplied for every pair of points. The axis to be summed over is brought
# first, where one large product of matrices does it.


def _points_of_kernel(kernel, rows: _Axis, columns: _Axis):
    """``(points of columns, 1, points of rows, ...)``, the same for all tiles."""
    import tensorflow as tf

    *_, one, other = kernel.shape
    values = tf.transpose(kernel, (1, 0, 2, 3))
    values = tf.matmul(_constant(rows.taps), tf.reshape(values, (TAPS, TAPS, -1)))
    values = tf.matmul(_constant(columns.taps), tf.reshape(values, (TAPS, -1)))
    return tf.reshape(values, (columns.points, 1, rows.points, one, other))


def _points_of_samples(maps, rows: _Axis, columns: _Axis):
    import tensorflow as tf

    _, height, width, channels = maps.shape
    values = tf.reshape(tf.transpose(maps, (1, 0, 2, 3)), (height, -1))
    values = tf.reshape(tf.matmul(_constant(rows.samples), values), (-1, width, channels))
    values = tf.reshape(tf.transpose(values, (1, 0, 2)), (width, -1))
    values = tf.matmul(_constant(columns.samples), values)
    return tf.reshape(values, (columns.points, columns.tiles, rows.points, -1, channels))


def _samples(values, rows: _Axis, columns: _Axis):
    """:func:`_points_of_samples` the other way."""
    import tensorflow as tf

    channels = values.shape[-1]
    (places, width), height = columns.samples.shape, rows.samples.shape[1]
    values = tf.matmul(_constant(columns.samples.T), tf.reshape(values, (places, -1)))
    values = tf.transpose(tf.reshape(values, (width, -1, channels)), (1, 0, 2))
    values = tf.reshape(values, (rows.points * rows.tiles, -1))
    maps = tf.matmul(_constant(rows.samples.T), values)
    return tf.transpose(tf.reshape(maps, (height, -1, width, channels)), (1, 0, 2, 3))


def _outputs(values, rows: _Axis, columns: _Axis):
    import tensorflow as tf

    channels = values.shape[-1]
    values = tf.matmul(_constant(columns.sums), tf.reshape(values, (columns.points, -1)))
    groups = columns.outputs * columns.tiles
    values = tf.matmul(_constant(rows.sums), tf.reshape(values, (groups, rows.points, -1)))
    shape = (columns.outputs, columns.tiles, rows.outputs, rows.tiles, -1, channels)
    maps = tf.transpose(tf.reshape(values, shape), (4, 3, 2, 1, 0, 5))
    return tf.reshape(maps, (-1, rows.tiles * rows.outputs, groups, channels))


def _points_of_outputs(maps, rows: _Axis, columns: _Axis):
    """:func:`_outputs` the other way."""
    import tensorflow as tf

    channels = maps.shape[-1]
    shape = (-1, rows.tiles, rows.outputs, columns.tiles, columns.outputs, channels)
    values = tf.transpose(tf.reshape(maps, shape), (4, 3, 2, 1, 0, 5))
    groups = columns.outputs * columns.tiles
    values = tf.reshape(values, (groups, rows.outputs, -1))
    values = tf.matmul(_constant(rows.sums.T), values)
    values = tf.matmul(_constant(columns.sums.T), tf.reshape(values, (columns.outputs, -1)))
    return tf.reshape(values, (columns.points, columns.tiles, rows.points, -1, channels))


def _constant(matrix: np.ndarray):
    import tensorflow as tf

    return tf.constant(matrix, tf.float32)
