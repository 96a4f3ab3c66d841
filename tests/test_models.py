"""The networks: sizes of the paper, what FiLM does, saving, learning."""

import keras
import numpy as np
import pytest
from conftest import NETWORKS, outputs

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS, Variant
from cunet_lib.models import film
from cunet_lib.models import unet as models
from cunet_lib.models.film import FiLM, film_parameters
from cunet_lib.models.weights import load, save_half

SMALL = {"shape": (64, 32, 1), "filters": 4, "blocks": 4}

PAPER_COUNTS = {
    "unet_vocals": (9_826_325, 9_823_315),
    "dense_simple": (9_848_497, 9_844_847),
    "dense_complex": (12_165_445, 12_159_875),
    "cnn_simple": (9_837_905, 9_834_703),
    "cnn_complex": (10_419_925, 10_416_275),
}


def inputs_of(model, rng, batch=4):
    mixture = rng.random((batch, *model.inputs[0].shape[1:]), np.float32)
    if not models.is_conditioned(model):
        return mixture
    return [mixture, np.eye(len(INSTRUMENTS), dtype=np.float32)[np.arange(batch) % 4]]


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_paper_size_has_the_papers_parameter_counts(name):
    assert models.count_parameters(models.build(name)) == PAPER_COUNTS[name]


def test_parameter_table_counts_four_unets_together():
    table = models.parameter_table(["unet", "shares"]).set_index("model")
    assert table.loc["unet", "parameters"] == 39_305_300
    assert list(table.index) == ["unet", "shares"]


@pytest.mark.parametrize("name", ["unet_drums", *NETWORKS])
def test_saved_model_gives_identical_outputs_in_safe_mode(name, tmp_path, rng):
    model = models.build(name, **SMALL, seed=3)
    inputs = inputs_of(model, rng)
    model.save(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(model, inputs), outputs(again, inputs))


# Each control network, each kind of FiLM and of masks once.
SOME = ("dense_simple", "cnn_complex", "shares")
ENCODED = [name for name in NETWORKS if VARIANTS[name].placement == "encoder"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet_bass", *SOME])
def test_single_batch_is_learned_and_only_z_tells_its_rows_apart(name, rng):
    model = models.build(name, shape=(64, 32, 1), filters=4, blocks=3, seed=1)
    conditioned = models.is_conditioned(model)
    mixture = np.repeat(rng.random((1, 64, 32, 1), np.float32), 8, axis=0)
    condition = np.eye(4, dtype=np.float32)[np.arange(8) % 4]
    # Each condition asks for its own quarter of the frequencies of one and the same mixture.
    target = np.zeros_like(mixture)
    for row in range(8):
        quarter = 16 * (row % 4) if conditioned else 0
        target[row, quarter : quarter + 16] = mixture[row, quarter : quarter + 16]
    inputs = [mixture, condition] if conditioned else mixture
    keras.utils.set_random_seed(0)
    model.compile(optimizer=keras.optimizers.Adam(5e-3, beta_1=0.5), loss="mae", jit_compile=False)
    losses = [float(model.train_on_batch(inputs, target)) for _ in range(150)]
    estimates = outputs(model, inputs)
    assert np.abs(estimates - target).mean() < 0.5 * losses[0]
    if conditioned:
        for row in range(1, 4):
            assert np.abs(estimates[row] - estimates[0]).mean() > 0.1


@pytest.mark.parametrize("name", ["unet_drums", *SOME])
def test_seed_decides_the_initial_weights(name):
    first, same, other = (
        models.build(name, **SMALL, seed=seed).get_weights() for seed in (0, 0, 1)
    )
    assert all(map(np.array_equal, first, same))
    assert not all(map(np.array_equal, first, other))


def test_film_scales_and_shifts_each_channel():
    x = np.ones((2, 3, 5, 4), np.float32)
    gammas = np.arange(16, dtype=np.float32).reshape(2, 8)
    betas = -gammas
    out = keras.ops.convert_to_numpy(FiLM(2, 4)([x, gammas, betas]))
    np.testing.assert_array_equal(out, np.zeros_like(x))
    out = keras.ops.convert_to_numpy(FiLM(2, 4)([2 * x, gammas, betas]))
    np.testing.assert_array_equal(out[1, 0, 0], gammas[1, 2:6])
    out = keras.ops.convert_to_numpy(FiLM(1, 1)([2 * x, gammas, betas]))
    np.testing.assert_array_equal(out[1], np.full((3, 5, 4), gammas[1, 1]))


@pytest.mark.parametrize("name", ENCODED)
def test_film_acts_in_the_encoder_between_normalization_and_activation(name):
    model = models.build(name, **SMALL)
    order = [layer.name for layer in model.layers]
    for block in range(1, 5):
        film = model.get_layer(f"encoder_{block}_film")
        source = film.input[0]._keras_history.operation.name
        assert source == f"encoder_{block}_normalization"
        activation = model.get_layer(f"encoder_{block}")
        assert activation.input._keras_history.operation is film
    assert not [layer for layer in order if layer.startswith("decoder") and "film" in layer]


def test_dropout_and_skips_are_where_the_paper_has_them():
    rows = {row["name"]: row for row in models.describe(models.build("dense_simple"))}
    dropout = [rows[f"decoder_{block}"]["dropout"] for block in range(1, 7)]
    assert dropout == [0, 0.5, 0.5, 0.5, 0, 0]
    skips = [rows[f"decoder_{block}"]["skip_from"] for block in range(1, 7)]
    assert skips == [None, "encoder_5", "encoder_4", "encoder_3", "encoder_2", "encoder_1"]
    assert [rows[f"control_{layer}"]["dropout"] for layer in (1, 2, 3)] == [0, 0.5, 0.5]
    assert [rows[f"control_{layer}"]["normalization"] for layer in (1, 2, 3)] == [False, True, True]


def test_shares_take_one_encoder_pass_and_obey_every_condition(rng):
    model = models.build("shares", **SMALL, start="he", seed=1)
    mixture = np.repeat(rng.random((1, 64, 32, 1), np.float32), 4, axis=0)

    def estimates(z):
        return outputs(model, [mixture[: len(z)], np.array(z, np.float32)])

    silence, everything, half, full = estimates(
        [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0.5, 0], [0, 0, 1, 0]]
    )
    np.testing.assert_array_equal(silence, 0)
    np.testing.assert_allclose(everything, mixture[0], atol=1e-6)
    np.testing.assert_allclose(half, full / 2, atol=1e-6)
    single = estimates(np.eye(4))
    assert np.abs(np.diff(single, axis=0)).max() > 0.01
    np.testing.assert_allclose(estimates([[1, 0, 0, 1]])[0], single[0] + single[3], atol=1e-6)
    rows = {row["name"]: row for row in models.describe(model)}
    assert [rows[f"decoder_{block}"]["film"] for block in range(1, 5)] == 4 * ["complex"]
    skips = [rows[f"decoder_{block}"]["skip_from"] for block in range(1, 5)]
    assert skips == [None, "encoder_3", "encoder_2", "encoder_1"]
    assert models.shares_model(models.build("dense_simple", **SMALL)) is None


def test_products_are_counted_for_all_instruments_that_one_pass_serves():
    size = {"shape": (64, 32, 1), "filters": 4, "blocks": 3}
    # Kernels of 5 x 5; of a transposed convolution each input meets the whole kernel.
    encoder = 32 * 16 * 4 + 16 * 8 * 4 * 8 + 8 * 4 * 8 * 16
    decoder = 8 * 4 * 16 * 8 + 16 * 8 * 16 * 4 + 32 * 16 * 8
    assert models.multiply_adds("unet_bass", **size) == 25 * (encoder + decoder)
    assert models.multiply_adds("cnn_simple", **size) == 25 * (encoder + decoder)
    # Once: the encoder, the decoder's first convolution, and those of the skips.
    once = 32 * 16 * 8 + 16 * 8 * 8 * 16 + 8 * 4 * 16 * 16
    once += 8 * 4 * 16 * 8 + 16 * 8 * 16 * 4 + 32 * 16 * 8
    each = 16 * 8 * 8 * 4 + 32 * 16 * 4
    # The first block alone has fewer maps than the last, and so a residual convolution of 3 x 3.
    residual = 9 * 32 * 16 * 8 * 8
    # Two dense layers of 16 over the frequencies of every block but the decoder's last.
    dense = 32 * 16 * 8 + 16 * 8 * 16 + 8 * 4 * 16 + 4 * (16 * 8 * 8 + 32 * 16 * 4)
    expected = 25 * (once + 4 * each) + residual + 2 * 16 * dense
    assert models.multiply_adds("shares", **size) == expected


@pytest.fixture
def both(monkeypatch):
    """A variant with a control network and a placement of its own: an entry each, no more."""

    def narrow(condition, units, add):
        return add(condition, keras.layers.Dense, units[0])

    monkeypatch.setitem(film.CONTROLS, "narrow", film.Control(narrow, {"complex": (8,)}))
    monkeypatch.setitem(film.PLACEMENTS, "both", lambda part, block, blocks: True)
    variant = Variant("narrow", "complex", "Narrow", placement="both")
    monkeypatch.setitem(models.VARIANTS, "narrow_both", variant)
    monkeypatch.setattr(models, "MODELS", (*models.MODELS, "narrow_both"))
    return "narrow_both"


def test_another_variant_is_built_described_and_saved_like_the_papers(both, tmp_path, rng):
    model = models.build(both, **SMALL, start="he")
    rows = {row["name"]: row for row in models.describe(model)}
    assert rows["control_1"]["part"] == "control" and "control_2" not in rows
    for part in ("encoder", "decoder"):
        assert [rows[f"{part}_{block}"]["film"] for block in range(1, 5)] == 4 * ["complex"]
    table = film.film_parameters(model, np.eye(4))
    assert table.groupby("block")["feature"].nunique().tolist() == [4, 8, 16, 32, 16, 8, 4, 1]
    save_half(model, tmp_path / "half.keras")
    again = load(tmp_path / "half.keras", precision="float32")
    inputs = inputs_of(model, rng)
    np.testing.assert_allclose(outputs(again, inputs), outputs(model, inputs), atol=1e-2)
    masks = outputs(models.mask_model(models.folded(model, frames=32)), inputs)
    expected = outputs(models.mask_model(model), inputs)
    np.testing.assert_allclose(masks, expected, atol=1e-5)


def test_he_start_spreads_gammas_around_one_and_tells_conditions_apart():
    model = models.build("dense_complex", **SMALL, start="he")
    table = film_parameters(model, np.eye(4))
    assert table["gamma"].mean() == pytest.approx(1, abs=0.3)
    by_condition = table.pivot(index=["block", "feature"], columns="condition", values="gamma")
    assert by_condition.std(axis=1).mean() > 0.1
    assert len(table) == 4 * (4 + 8 + 16 + 32)


def test_half_precision_copy_is_half_the_size_and_close(tmp_path, rng):
    size = {**SMALL, "filters": 16}
    model = models.build("cnn_complex", **size, seed=1, start="he")
    model.save(tmp_path / "full.keras")
    save_half(model, tmp_path / "half.keras")
    sizes = [(tmp_path / name).stat().st_size for name in ("full.keras", "half.keras")]
    assert sizes[1] < 0.6 * sizes[0]
    again = load(tmp_path / "half.keras", precision="float32")
    inputs = inputs_of(model, rng)
    np.testing.assert_allclose(outputs(again, inputs), outputs(model, inputs), atol=2e-3)


@pytest.mark.parametrize("name", ["unet_drums", *SOME])
def test_folded_network_gives_the_same_masks_at_any_length(name, tmp_path, rng):
    model = models.build(name, **SMALL, start="he", seed=3)
    for layer in model.layers:
        if layer.name.endswith("_normalization"):
            weights = [rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()]
            layer.set_weights(weights)
        if "_frequencies_" in layer.name:
            layer.set_weights([rng.normal(0, 0.2, each.shape) for each in layer.get_weights()])
    before = model.get_weights()
    inputs = inputs_of(model, rng)
    expected = outputs(models.mask_model(model), inputs)
    assert np.ptp(expected) > 0.1
    same = models.folded(model, frames=32)
    assert not any(layer.name.endswith("_normalization") for layer in same.layers)
    masks = outputs(models.mask_model(same), inputs)
    np.testing.assert_allclose(masks, expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    rounded = load(tmp_path / "model.keras", precision="mixed_bfloat16")
    rounded = models.folded(rounded, frames=32)
    masks = outputs(models.mask_model(rounded), inputs)
    assert masks.dtype == np.float32 and np.abs(masks - expected).mean() < 0.01
    long = models.folded(model, frames=128)
    assert long.name == name and long.inputs[0].shape == (None, 64, 128, 1)
    assert outputs(long, inputs_of(long, rng)).shape == (4, 64, 128, 1)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_unknown_names_are_refused_by_name():
    with pytest.raises(ConfigError, match="No model 'unet_flute'"):
        models.build("unet_flute")
    assert len(UNETS) == 4
