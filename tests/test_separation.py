"""Separation: length, level, overlap."""

import functools

import numpy as np
import pytest

from cunet_lib.core.settings import ConfigError, Separate, load_profile
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.separation import separator as separation

SETTINGS = load_profile("smoke")
SHAPE = {"shape": SETTINGS.patch_shape, "filters": 2, "blocks": 4}


@pytest.fixture(scope="module", params=["dense_simple", "shares"])
def conditioned(request):
    return models.build(request.param, **SHAPE, start="he")


@functools.cache
def open_mask(name):
    """A model whose mask is 1 everywhere: the bias of its last normalisation is huge."""
    model = models.build(name, **SHAPE)
    last = model.get_layer("decoder_4_normalization")
    gamma, beta, mean, variance = last.get_weights()
    last.set_weights([gamma, np.full_like(beta, 50.0), mean, variance])
    return model


@pytest.mark.parametrize(
    "joined", [{"overlap": 0.0}, {}, {"overlap": 0.75}, {"pitches": [0.91, 1.3]}]
)
def test_open_mask_gives_the_mixture_back(joined, rng):
    separator = separation.Separator(open_mask("unet_bass"), SETTINGS.signal, Separate(**joined))
    for samples in (1, 700, 16384, 50001):
        audio = rng.normal(size=samples).astype(np.float32) * 0.3
        estimate = separator(audio)
        assert estimate.shape == (1, samples)
        np.testing.assert_allclose(estimate[0], audio, atol=1e-4)


def test_masks_are_within_zero_and_one(conditioned, rng):
    separator = separation.Separator(conditioned, SETTINGS.signal)
    masks = separator.masks(separator.hear(rng.normal(size=30000)), all_one_hot())
    assert masks.shape == (4, 513, 1 + 118)
    assert masks.min() >= 0 and masks.max() <= 1


@pytest.mark.parametrize("pitch", [0.91, 1.1])
def test_a_song_is_heard_at_the_other_pitch_too_and_masks_meet_at_its_own(pitch, monkeypatch):
    """Of a tone; the network is one that lets through what is loud."""
    signal, tone = SETTINGS.signal, 200
    separator = separation.Separator(open_mask("unet_bass"), signal, Separate(pitches=[pitch]))
    monkeypatch.setattr(separator, "_mask_patches", lambda patches, conditions: patches[None])
    audio = np.sin(2 * np.pi * tone / signal.n_fft * np.arange(30000))
    heard = separator.hear(audio)
    own, other = heard[..., 5:-5].mean(axis=2)
    assert own.argmax() == tone and other.argmax() == round(tone * pitch)
    (mask,) = separator.masks(heard)
    loud = mask[:, 5:-5].mean(axis=1)
    assert loud.argmax() == tone and loud[tone] > 0.9
    assert loud[round(tone * pitch)] < 0.01


@pytest.mark.parametrize("at_once", [1, 2])
def test_batches_are_filled_with_patches_under_all_conditions(conditioned, rng, at_once):
    """Whatever lies beside a patch in a batch, its mask is the network's own."""
    separator = separation.Separator(
        conditioned, SETTINGS.signal, Separate(batch_size=4), at_once=at_once
    )
    network = models.mask_model(conditioned)
    for patches, wanted in ((1, 1), (5, 1), (2, 3), (3, 4)):
        given = rng.random((patches, *SHAPE["shape"][:2])).astype(np.float32)
        z = all_one_hot()[:wanted]
        masks = separator._mask_patches(given, z)
        assert masks.shape == (wanted, *given.shape)
        for mask, condition in zip(masks, z, strict=True):
            expected = network([given[..., None], np.repeat(condition[None], patches, axis=0)])
            np.testing.assert_allclose(mask, np.asarray(expected)[..., 0], atol=1e-5)


def test_conditions_go_with_conditioned_models_only(conditioned, rng):
    audio = rng.normal(size=5000).astype(np.float32)
    with pytest.raises(ConfigError, match="needs conditions"):
        separation.Separator(conditioned, SETTINGS.signal)(audio)
    with pytest.raises(ConfigError, match="takes no condition"):
        separation.Separator(open_mask("unet_bass"), SETTINGS.signal)(audio, all_one_hot())


def test_shares_add_up_and_conditions_may_be_computed_together(conditioned, rng):
    heard = rng.random((1, 513, 2 * SHAPE["shape"][1])).astype(np.float32)
    one, two = (
        separation.Separator(conditioned, SETTINGS.signal, Separate(batch_size=4), at_once=at_once)
        for at_once in (1, 2)
    )
    masks, shares = one.masks(heard, all_one_hot()), two.shares(heard)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(shares, masks / masks.sum(axis=0), atol=1e-5)
