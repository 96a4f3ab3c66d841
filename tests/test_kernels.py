"""The faster layers compute what Keras' own do, forward and backward, and keep the same state."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cunet_lib.models import fast as kernels
from cunet_lib.models.fast import (
    Adam,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dropout,
    ToOneChannel,
)


@pytest.fixture(autouse=True, scope="module")
def processor():
    """Layers take a processor's ways on a machine with a GPU, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "gpus", list)
        yield


SHAPES = st.tuples(*(st.integers(*bounds) for bounds in ((1, 3), (1, 9), (1, 9), (1, 12))))


def pair(ours, theirs, shape, rng, **options):
    """Both layers, built for ``shape`` with the same random weights."""
    layers = [kind(**options) for kind in (ours, theirs)]
    for layer in layers:
        layer.build(shape)
    weights = [rng.uniform(0.5, 1.5, weight.shape) for weight in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def outcome(layer, x, upstream, **call):
    """Outputs, and the gradients of inputs and weights."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, **call)
    weights = [weight.value for weight in layer.trainable_weights]
    return outputs, tape.gradient(outputs, [x, *weights], output_gradients=upstream)


@given(SHAPES, st.booleans(), st.integers(0, 9))
@settings(max_examples=15)
def test_normalisation_is_keras_own(shape, training, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(2.0, 3.0, shape).astype(np.float32)
    upstream = rng.normal(size=shape).astype(np.float32)
    ours, theirs = pair(
        BatchNormalization, keras.layers.BatchNormalization, shape, rng, momentum=0.9
    )
    (one, gradients), (two, expected) = (
        outcome(each, x, upstream, training=training) for each in (ours, theirs)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(gradients, expected, strict=True):
        scale = np.abs(upstream).sum()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * scale)
    for found, wanted in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_frozen_normalisation_learns_nothing():
    layer = BatchNormalization()
    x = np.random.default_rng(0).normal(5.0, 1.0, (2, 4, 4, 3)).astype(np.float32)
    layer.build(x.shape)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False))
    for one, two in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_bfloat16_maps_have_float32_statistics():
    """A mean that bfloat16 cannot hold exactly; sums over many values would be far off in it."""
    rng = np.random.default_rng(0)
    x = rng.normal(100.0, 1.0, (4, 64, 64, 8)).astype(np.float32)
    layer = BatchNormalization(momentum=0.0, dtype="mixed_bfloat16")
    outputs = layer(x, training=True)
    assert outputs.dtype == "bfloat16"
    rounded = tf.cast(tf.cast(x, "bfloat16"), "float32").numpy()
    np.testing.assert_allclose(layer.moving_mean, rounded.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, rounded.var(axis=(0, 1, 2)), rtol=1e-3)


def assert_same(layers, x, rng, *, atol=1e-4, **call):
    """Outputs, and gradients of inputs and weights, agree, save rounding of the largest."""
    upstream = rng.normal(size=layers[1](x).shape).astype(np.float32)
    (one, found), (two, wanted) = (outcome(each, x, upstream, **call) for each in layers)
    for left, right in zip((one, *found), (two, *wanted), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=atol * np.abs(right).max())


OPTIONS = {"kernel_size": 5, "strides": 2, "padding": "same"}


@given(SHAPES, st.integers(0, 9))
@settings(max_examples=15)
def test_transposed_convolution_is_keras_own(shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    kinds = (ToOneChannel, keras.layers.Conv2DTranspose)
    assert_same(pair(*kinds, shape, rng, filters=1, **OPTIONS), x, rng)


@pytest.mark.parametrize("shape", [(2, 8, 6, 16), (1, 7, 5, 4)])
def test_transposed_convolution_of_bfloat16_maps(shape, rng):
    """Both differ from float32 by what bfloat16 rounds; ours is the nearer one."""
    options = {"filters": 1, **OPTIONS}
    x = rng.normal(size=shape).astype(np.float32)
    ours, theirs = pair(
        ToOneChannel, keras.layers.Conv2DTranspose, shape, rng, dtype="mixed_bfloat16", **options
    )
    exact = keras.layers.Conv2DTranspose(**options)
    exact.build(shape)
    exact.set_weights(theirs.get_weights())
    one, two, wanted = (np.asarray(each(x)).astype(np.float32) for each in (ours, theirs, exact))
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(one, wanted, atol=2**-7 * largest)
    np.testing.assert_allclose(two, wanted, atol=2**-5 * largest)


CONVOLUTIONS = (
    (Conv2D, keras.layers.Conv2D),
    (Conv2DTranspose, keras.layers.Conv2DTranspose),
)
SIX = {"filters": 6, **OPTIONS}


@given(
    st.sampled_from(CONVOLUTIONS),
    SHAPES,
    st.sampled_from((1, 2, 3, (1, 2), (2, 1))),
    st.sampled_from(("same", "valid")),
    st.integers(0, 9),
)
@settings(max_examples=30)
def test_turned_convolutions_are_keras_own(kinds, shape, strides, padding, seed):
    """Maps higher than wide, and some that are not: whatever way is taken, nothing changes."""
    rng = np.random.default_rng(seed)
    batch, width, more, channels = shape
    shape = (batch, width + more + 3, width + 4, channels)
    x = rng.normal(size=shape).astype(np.float32)
    options = {"filters": 3, "kernel_size": (5, 4), "strides": strides, "padding": padding}
    assert_same(pair(*kinds, shape, rng, **options), x, rng)


@pytest.mark.parametrize("kind", [Conv2D, Conv2DTranspose])
@pytest.mark.parametrize(
    ("shape", "options", "turned"),
    [
        ((1, 16, 4, 3), {}, True),
        ((1, 16, 4, 3), {"strides": (2, 1)}, False),
        ((1, 16, 16, 3), {}, False),
        ((1, 4, 16, 3), {}, False),
        ((1, 64, 32, 3), {}, False),
    ],
)
def test_narrow_maps_are_convolved_on_their_side(kind, shape, options, turned):
    layer = kind(**SIX | options)
    x = tf.zeros(shape)
    layer(x)
    (product,) = products(layer, x)
    maps = product.outputs[0] if kind is Conv2DTranspose else product.inputs[0]
    height, width = maps.shape[1:3]
    assert (width > height) == (turned or shape[2] > shape[1])


DEEP = {**OPTIONS, "filters": 64}


def products(layer, *inputs, **call):
    """Operations of a layer's graph, or a function's, that multiply maps with a kernel."""
    graph = tf.function(lambda *maps: layer(*maps, **call)).get_concrete_function(*inputs).graph
    return [
        operation
        for operation in graph.get_operations()
        if operation.type.startswith("Conv2D")
        or (operation.type.startswith("BatchMatMul") and len(operation.outputs[0].shape) == 5)
    ]


def trained(layer, x):
    """Kinds of these operations in training."""
    return [operation.type for operation in products(layer, x, training=True)]


@pytest.mark.parametrize(("ours", "theirs"), CONVOLUTIONS)
def test_deep_maps_train_with_fewer_multiplications(ours, theirs, rng):
    """And with the outputs and gradients of Keras' layers; inference takes Keras' way."""
    x = rng.normal(size=(2, 8, 4, 64)).astype(np.float32)
    layers = pair(ours, theirs, x.shape, rng, **DEEP, activation="relu")
    assert trained(layers[0], tf.constant(x)) == ["BatchMatMulV2"]
    assert products(layers[0], tf.constant(x), training=False)[0].type.startswith("Conv2D")
    assert_same(layers, x, rng, atol=1e-5, training=True)


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        *(
            (kind, options, (1, 8, 8, 64))
            for kind in (Conv2D, Conv2DTranspose)
            for options in (
                *({"filters": 63}, {"kernel_size": (5, 3)}, {"strides": 1}, {"padding": "valid"}),
                *({"dilation_rate": 2, "strides": 1}, {"dtype": "float16"}),
            )
        ),
        (Conv2D, {}, (1, 7, 8, 64)),
        (Conv2D, {}, (1, None, 8, 64)),
        (Conv2DTranspose, {}, (1, 8, None, 64)),
        (Conv2D, {"groups": 2}, (1, 8, 8, 128)),
        (Conv2DTranspose, {"output_padding": 1}, (1, 8, 8, 64)),
    ],
)
def test_what_it_does_not_serve_is_convolved_otherwise(kind, options, shape):
    layer = kind(**DEEP | options)
    layer.build((1, 8, 8, shape[-1]))
    # Keras convolves groups in a function of its own.
    maps = tf.TensorSpec(shape, layer.compute_dtype)
    assert "BatchMatMulV2" not in trained(layer, maps)


def test_an_accelerator_convolves_by_itself(monkeypatch):
    monkeypatch.setattr(kernels, "gpus", lambda: ["GPU:0"])
    layer = Conv2D(**DEEP)
    x = tf.zeros((1, 8, 8, 64))
    layer(x)
    assert trained(layer, x) == ["Conv2D"]


@pytest.mark.parametrize(
    ("processor", "kind"), [(True, "Conv2D"), (False, "BatchMatMulV2")], ids=["has", "has not"]
)
def test_bfloat16_maps_take_it_where_they_are_multiplied_in_float32(
    processor, kind, rng, monkeypatch
):
    monkeypatch.setattr(kernels, "computes_bfloat16", lambda: processor)
    layer = Conv2D(**DEEP, dtype="mixed_bfloat16")
    x = tf.cast(rng.normal(size=(1, 8, 8, 64)), "bfloat16")
    layer.build(x.shape)
    assert trained(layer, x) == [kind]
    outputs = layer(x, training=True)
    assert outputs.dtype == "bfloat16"
    kernel = tf.cast(tf.cast(layer.kernel.value, "bfloat16"), "float32")
    wanted = tf.nn.conv2d(tf.cast(x, "float32"), kernel, 2, "SAME")
    # Rounded once, to eight digits.
    np.testing.assert_allclose(
        tf.cast(outputs, "float32"), wanted, atol=2**-8 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("kind", [Conv2D, Conv2DTranspose])
def test_layers_without_activation_or_bias_are_served(kind, rng):
    layer = kind(**DEEP, use_bias=False)
    layer.activation = None
    x = rng.normal(size=(1, 8, 8, 64)).astype(np.float32)
    one, two = (layer(x, training=training) for training in (True, False))
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())


@pytest.mark.parametrize(("ours", "theirs"), CONVOLUTIONS)
def test_convolutions_of_bfloat16_maps_round_as_bfloat16_does(ours, theirs, rng):
    """Outputs and gradients are float32's of rounded numbers, rounded once."""
    x = rng.normal(size=(2, 8, 6, 3)).astype(np.float32)
    layer, exact = pair(ours, theirs, x.shape, rng, **SIX)
    rounded = ours.from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    rounded.build(x.shape)
    values = [tf.cast(tf.cast(value, "bfloat16"), "float32") for value in exact.get_weights()]
    for each in (rounded, exact):
        each.set_weights(values)
    x = tf.cast(x, "bfloat16")
    upstream = tf.cast(rng.normal(size=exact(tf.cast(x, "float32")).shape), "bfloat16")
    one, found = outcome(rounded, x, upstream)
    two, wanted = outcome(exact, tf.cast(x, "float32"), tf.cast(upstream, "float32"))
    assert one.dtype == "bfloat16"
    # The bias is added after rounding, and the sum rounded again.
    np.testing.assert_allclose(tf.cast(one, "float32"), two, atol=2**-7 * np.abs(two).max())
    # Of inputs and kernel; Keras adds up the bias's in bfloat16.
    for left, right in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(
            tf.cast(left, "float32"), right, atol=2**-8 * np.abs(right).max()
        )


def test_bfloat16_is_multiplied_in_float32_where_the_processor_has_no_other_way(rng, monkeypatch):
    monkeypatch.setattr(kernels, "computes_bfloat16", lambda: False)
    layer = Conv2D(4, 5, dtype="mixed_bfloat16")
    x = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    layer(x)
    (product,) = products(layer, tf.constant(x))
    assert product.type == "Conv2D" and product.outputs[0].dtype == tf.float32


def test_weights_are_named_and_shaped_as_keras_own():
    for ours, theirs in (
        (ToOneChannel(), keras.layers.Conv2DTranspose(1, 5)),
        (Conv2D(3, 5), keras.layers.Conv2D(3, 5)),
        (Conv2DTranspose(3, 5), keras.layers.Conv2DTranspose(3, 5)),
        (BatchNormalization(), keras.layers.BatchNormalization()),
        (Dropout(0.5), keras.layers.Dropout(0.5)),
    ):
        for layer in (ours, theirs):
            layer.build((2, 8, 8, 16))
        assert [(w.name, w.shape) for w in ours.weights] == [
            (w.name, w.shape) for w in theirs.weights
        ]


def test_dropout_drops_its_share_and_scales_the_rest(rng):
    layer = Dropout(0.5, seed=3)
    x = rng.uniform(1.0, 2.0, (4, 64, 32, 16)).astype(np.float32)
    found, (gradient,) = outcome(layer, x, np.ones_like(x), training=True)
    kept = np.asarray(found) != 0
    np.testing.assert_array_equal(found, np.where(kept, 2 * x, 0))
    np.testing.assert_array_equal(gradient, np.where(kept, 2.0, 0.0))
    # A binomial's standard deviation is half the root of the count.
    assert abs(kept.sum() - kept.size / 2) < 2.5 * np.sqrt(kept.size)
    np.testing.assert_array_equal(layer(x, training=False), x)


@pytest.mark.parametrize("axis", range(4))
def test_dropout_drops_neighbours_independently(axis):
    """The bytes of a word, and words that follow each other, share nothing."""
    layer = Dropout(0.25, seed=0)
    kept = np.asarray(layer(tf.ones((16, 32, 32, 16)), training=True)) != 0
    assert abs(kept.mean() - 0.75) < 0.005
    one, two = (np.delete(kept, place, axis).ravel() for place in (0, -1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.01


def test_dropout_is_a_function_of_seed_and_step():
    x = tf.ones((2, 8, 8, 8))
    first, same, other = (Dropout(0.5, seed=seed) for seed in (1, 1, 2))
    steps = [np.asarray(first(x, training=True)) for _ in range(2)]
    for step in steps:
        np.testing.assert_array_equal(step, same(x, training=True))
    assert (steps[0] != steps[1]).any()
    assert (np.asarray(other(x, training=True)) != steps[0]).any()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"rate": 0.1}, (2, 4, 4, 8)),
        ({"rate": 0.5}, (2, 4, 4, 6)),
        ({"rate": 0.5, "noise_shape": (2, 1, 1, 8)}, (2, 4, 4, 8)),
        ({"rate": 0}, (2, 4, 4, 8)),
    ],
)
def test_what_bytes_cannot_do_is_keras_dropout(options, shape):
    ours, theirs = (kind(**options, seed=5) for kind in (Dropout, keras.layers.Dropout))
    x = tf.ones(shape)
    np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))


def test_bfloat16_maps_are_dropped_alike():
    masks = [
        np.asarray(tf.cast(layer(tf.ones((2, 8, 8, 8)), training=True), "float32"))
        for layer in (Dropout(0.5, seed=1), Dropout(0.5, seed=1, dtype="mixed_bfloat16"))
    ]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("options", [{}, {"beta_1": 0.5, "epsilon": 1e-4}, {"amsgrad": True}])
def test_adam_is_keras_own(options, rng):
    start = rng.normal(size=(7, 5)).astype(np.float32)
    gradients = rng.normal(size=(6, 7, 5)).astype(np.float32)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.7)

    def trained(kind):
        variable = keras.Variable(start, name="weights")
        optimizer = kind(schedule, **options)
        optimizer.build([variable])
        step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
        for gradient in gradients:
            step(tf.constant(gradient))
        return [variable, *optimizer.variables]

    for ours, theirs in zip(trained(Adam), trained(keras.optimizers.Adam), strict=True):
        assert ours.name == theirs.name
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
