"""Convolutions with fewer multiplications are convolutions: numbers, gradients, rounding."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import products

from cunet_lib.models import winograd

SIZES = st.sampled_from(range(2, 41, 2))


def plain(maps, kernel):
    return tf.nn.conv2d(maps, kernel, 2, "SAME")


def plain_transposed(maps, kernel):
    batch, height, width, _ = maps.shape
    shape = (batch, 2 * height, 2 * width, kernel.shape[2])
    return tf.nn.conv2d_transpose(maps, kernel, shape, 2, "SAME")


KINDS = [(winograd.convolved, plain, False), (winograd.transposed, plain_transposed, True)]


def drawn(rng, batch, height, width, channels, transposed):
    """Maps, kernel and upstream gradient; height and width are those of the larger map."""
    large, small = channels
    maps = [
        rng.normal(size=(batch, height, width, large)),
        rng.normal(size=(batch, height // 2, width // 2, small)),
    ]
    kernel = rng.normal(size=(5, 5, large, small)) / np.sqrt(25 * large)
    return (maps[transposed], kernel, maps[not transposed])


def outcome(convolution, maps, kernel, upstream, dtype):
    """Outputs, and the gradients of maps and kernel."""
    maps, kernel, upstream = (tf.constant(each, dtype) for each in (maps, kernel, upstream))
    with tf.GradientTape() as tape:
        tape.watch((maps, kernel))
        outputs = convolution(maps, kernel)
    return [
        each.numpy()
        for each in (outputs, *tape.gradient(outputs, (maps, kernel), output_gradients=upstream))
    ]


@pytest.mark.parametrize(("ours", "theirs", "transposed"), KINDS)
@given(st.integers(1, 3), SIZES, SIZES, st.tuples(*2 * [st.integers(1, 5)]), st.integers(0, 9))
@settings(max_examples=15)
def test_any_even_map_is_convolved(ours, theirs, transposed, batch, height, width, channels, seed):
    case = drawn(np.random.default_rng(seed), batch, height, width, channels, transposed)
    found, exact = outcome(ours, *case, tf.float32), outcome(theirs, *case, tf.float64)
    for left, right in zip(found, exact, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max())


@pytest.mark.parametrize(("ours", "theirs", "transposed"), KINDS)
@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(64, 16, (64, 128)), (32, 8, (128, 256)), (16, 4, (64, 512))]
)
def test_rounding_is_small(ours, theirs, transposed, mean, height, width, channels, rng):
    """Root mean square errors, at sizes of the paper's network; float32 has steps of 1.2e-7."""
    maps, *others = drawn(rng, 2, height, width, channels, transposed)
    case = (maps + mean, *others)
    exact = outcome(theirs, *case, tf.float64)
    for own, other, right in zip(
        outcome(ours, *case, tf.float32), outcome(theirs, *case, tf.float32), exact, strict=True
    ):
        error, usual, level = (np.sqrt(np.mean(e**2)) for e in (own - right, other - right, right))
        assert error < 1e-5 * level, (error, level)
        assert error < 15 * usual, (error, usual)


@pytest.mark.parametrize(("ours", "theirs", "transposed"), KINDS)
def test_one_graph_takes_batches_of_any_size(ours, theirs, transposed, rng):
    maps, kernel, _ = drawn(rng, 3, 8, 12, (4, 6), transposed)
    signature = tf.TensorSpec((None, *maps.shape[1:]), tf.float32)
    graph = tf.function(lambda x: ours(x, tf.constant(kernel, tf.float32)), [signature])
    for count in (1, 3):
        some = tf.constant(maps[:count], tf.float32)
        wanted = theirs(some, tf.constant(kernel, tf.float32))
        np.testing.assert_allclose(graph(some), wanted, atol=1e-5)


@pytest.mark.parametrize(("ours", "transposed"), [(each[0], each[2]) for each in KINDS])
@pytest.mark.parametrize(
    ("size", "share"), [((16, 8), 121 / 400), ((8, 4), 77 / 200), ((6, 2), 45 / 75)]
)
def test_multiplications_are_as_few_as_said(ours, transposed, size, share, rng):
    """Counted in the graph: of the one product between maps and kernel."""
    maps, kernel, _ = drawn(rng, 2, *size, (3, 7), transposed)
    (product,) = products(ours, *(tf.constant(each, tf.float32) for each in (maps, kernel)))
    assert product.type.startswith("BatchMatMul")
    done = np.prod(product.outputs[0].shape) * product.inputs[0].shape[-1]
    direct = 2 * (size[0] // 2) * (size[1] // 2) * np.prod(kernel.shape)
    assert done / direct == pytest.approx(share)


def test_it_pays_between_deep_maps_alone():
    assert winograd.pays(64, 16, (5, 5, 64, 128))
    assert not winograd.pays(64, 16, (5, 5, 32, 128))
    assert not winograd.pays(64, 16, (5, 5, 128, 32))
    assert not winograd.pays(64, 15, (5, 5, 64, 128))
    assert not winograd.pays(64, 16, (3, 3, 64, 128))
    assert not winograd.pays(128, 32, (5, 5, 64, 128))
    # Seven outputs are no tiles of four, three or two.
    assert not winograd.pays(14, 14, (5, 5, 64, 128))
