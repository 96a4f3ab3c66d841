"""Batches: seeded by step, right targets, no peeking."""

import numpy as np
import pytest
from conftest import changed
from numpy.lib.stride_tricks import sliding_window_view

from cunet_lib.core.settings import CONDITION_KINDS
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import PAIRS
from cunet_lib.preprocess.store import Store
from cunet_lib.train.batches import Ahead, Batch, TrainingBatches, validation_batch


@pytest.fixture
def batches(tones):
    """A function that gives batches of a model; of the settings of training some may change."""
    settings, store = tones

    def made(model="dense_simple", *, seed=0, kind=TrainingBatches, **changes):
        return kind(store, changed(settings, "train", **changes), model=model, seed=seed)

    return made


@pytest.fixture
def validation(tones):
    """The same of the batch to validate with."""
    settings, store = tones
    return lambda model="dense_simple", **changes: validation_batch(
        store, changed(settings, "train", **changes), model=model
    )


@pytest.fixture
def tracks(tones):
    """Stems of the tracks to train on, as loud as batches have them."""
    store = tones[1]
    return [store.audio(entry) / entry.scale for entry in store.split("train")]


def assert_equal(one, two):
    """Two batches are the same, bit for bit."""
    for name in ("mixture", "target", "condition"):
        left, right = getattr(one, name), getattr(two, name)
        assert left.dtype == right.dtype == np.float32
        assert left.tobytes() == right.tobytes(), name


@pytest.mark.parametrize("kinds", [("one_hot",), CONDITION_KINDS])
def test_a_batch_is_a_function_of_seed_and_step(batches, kinds):
    first, again, other = (batches(seed=seed, conditions=kinds) for seed in (1, 1, 2))
    for step in (0, 7):
        assert_equal(first.batch(step), again.batch(step))
    assert np.abs(first.batch(0).mixture - first.batch(1).mixture).max() > 0
    assert np.abs(first.batch(0).mixture - other.batch(0).mixture).max() > 0


def test_dataset_gives_the_same_batches_from_any_step_on(batches):
    found = batches("cnn_simple")
    for step, ((mixture, condition), target) in zip(range(5, 9), Ahead(found, 5), strict=False):
        assert_equal(Batch(*map(np.asarray, (mixture, target, condition))), found.batch(step))


def test_dedicated_unet_gets_its_instrument_at_full_level(tones, batches):
    found = batches("unet_drums", remix=0.0, progressive=1.0, batch_size=8)
    batch = found.batch(0)
    np.testing.assert_array_equal(batch.condition, np.tile([0, 1, 0, 0], (8, 1)))
    # Noise bursts in the target, and the mixture holds them too.
    assert np.abs(batch.target).max() > 0
    full = batches("unet_drums", remix=0.0, progressive=0.0, batch_size=8).batch(0)
    np.testing.assert_array_equal(batch.target, full.target)
    mixture, target = next(iter(Ahead(found)))
    assert mixture.shape == target.shape == (8, tones[0].patch_samples)


def test_without_augmentation_the_target_is_the_stem_under_the_mixture(tracks, batches):
    batch = batches(remix=0.0, progressive=0.0, batch_size=16).batch(3)
    for mixture, target, condition in zip(
        batch.mixture, batch.target, batch.condition, strict=True
    ):
        stem = 1 + int(np.argmax(condition))
        assert sorted(condition) == [0, 0, 0, 1]
        assert any(_holds(audio, mixture, target, stem) for audio in tracks)


def _holds(audio, mixture, target, stem):
    """Whether mixture and target stand at one place of the track."""
    length = len(mixture)
    heads = sliding_window_view(audio[0, : audio.shape[1] - length + 32], 32)
    for start in np.flatnonzero(np.abs(heads - mixture[:32]).max(axis=1) < 1e-6):
        place = audio[:, start : start + length]
        if np.allclose(place[[0, stem]], [mixture, target], atol=1e-6):
            return True
    return False


def test_progressive_scales_condition_and_target_together(batches):
    plain, batch = (
        batches(remix=0.0, progressive=share, batch_size=64).batch(0) for share in (0.0, 1.0)
    )
    levels = batch.condition.max(axis=1)
    assert 0 < levels.min() < 0.2 and 0.8 < levels.max() < 1
    assert 0.35 < levels.mean() < 0.65
    # The first row's place is drawn before its level, so that it is the same in both.
    np.testing.assert_array_equal(plain.mixture[0], batch.mixture[0])
    np.testing.assert_allclose(batch.target[0], plain.target[0] * levels[0], rtol=1e-5)


def conditions_of(batches, steps):
    """Conditions of some batches, one below the other."""
    return np.concatenate([batches.batch(step).condition for step in range(steps)])


def test_probabilities_are_the_settings(batches):
    conditions = conditions_of(batches(progressive=0.25, batch_size=64), 25)
    assert ((conditions.max(axis=1) < 1).mean()) == pytest.approx(0.25, abs=0.04)
    shares = (conditions > 0).mean(axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.04)


@pytest.mark.parametrize("remix", [0.0, 0.25, 1.0])
def test_remix_replaces_the_other_instruments_with_the_set_probability(tracks, batches, remix):
    found = batches("unet_other", remix=remix, batch_size=32)
    mixed = [
        not any(_holds(audio, mixture, target, 3) for audio in tracks)
        for batch in map(found.batch, range(4))
        for mixture, target in zip(batch.mixture, batch.target, strict=True)
    ]
    assert np.mean(mixed) == pytest.approx(remix, abs=0.12)


def test_remix_keeps_the_target_inside_the_mixture(batches):
    batch = batches("unet_vocals", remix=1.0, progressive=0.0, batch_size=32).batch(0)

    # What is left is made of other stems: it has less of the target than the mixture has.
    def share(audio):
        return np.abs(np.sum(audio * batch.target, axis=1)) / np.sum(batch.target**2, axis=1)

    assert (share(batch.mixture) > 0.5).all()
    assert (share(batch.mixture - batch.target) < 0.5).all()


@pytest.mark.parametrize("remix", [0.0, 1.0])
def test_speeds_and_levels_vary_and_the_sources_still_add_up(batches, remix):
    options = {"remix": remix, "conditions_per_mixture": 4, "progressive": 0.0}
    plain, varied, again = (
        batches(**options, **more)
        for more in ({}, *2 * [{"speed": 0.2, "gain_db": 6.0, "batch_size": 16}])
    )
    batch = varied.batch(3)
    assert_equal(batch, again.batch(3))
    for first in range(0, len(batch.mixture), 4):
        rows = slice(first, first + 4)
        total = batch.target[rows].sum(axis=0)
        np.testing.assert_allclose(total, batch.mixture[first], atol=1e-5)
    tones, found = set(), set()
    for step in range(5):
        for one, into in ((plain.batch(step), tones), (varied.batch(step), found)):
            spectra = np.abs(np.fft.rfft(one.target * np.hanning(one.target.shape[1])))
            into |= set(spectra.argmax(axis=1))
    assert min(found) < min(tones) and max(found) > max(tones) and len(found) > len(tones)


def test_levels_of_stems_vary_within_what_is_set(batches):
    options = {"remix": 0.0, "conditions_per_mixture": 4, "progressive": 0.0}
    plain, varied = batches(**options).batch(3), batches(**options, gain_db=6.0).batch(3)
    np.testing.assert_array_equal(plain.condition[:4], varied.condition[:4])
    gains = [
        20 * np.log10(np.abs(after).max() / np.abs(before).max())
        for before, after in zip(plain.target[:4], varied.target[:4], strict=True)
        if np.abs(before).max() > 0
    ]
    assert np.abs(gains).max() <= 6.0 and np.ptp(gains) > 0.1


def test_no_training_batch_touches_validation_or_test_tracks(batches, validation, monkeypatch):
    opened = []
    audio = Store.audio
    monkeypatch.setattr(
        Store, "audio", lambda self, entry: opened.append(entry.split) or audio(self, entry)
    )
    conditions_of(batches(remix=1.0), 20)
    assert set(opened) == {"train"}
    opened.clear()
    validation()
    assert set(opened) == {"valid"}


def test_validation_asks_for_every_instrument_of_every_patch(validation):
    batch = validation("cnn_complex")
    assert len(batch.condition) % len(INSTRUMENTS) == 0
    np.testing.assert_array_equal(batch.condition.sum(axis=0), len(batch.condition) / 4)
    assert_equal(batch, validation("cnn_complex"))
    few = validation("cnn_complex", validation_patches=1)
    np.testing.assert_array_equal(few.condition, np.eye(4))
    assert {tuple(row) for row in validation("unet_bass").condition} == {(1, 0, 0, 0)}


def test_tracks_shorter_than_a_patch_are_padded(tones):
    settings, store = tones
    settings = changed(settings, "model", patch_frames=256)
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(0)
    assert batch.mixture.shape[1] == settings.patch_samples
    assert (batch.mixture[:, -1000:] == 0).all()
    assert len(validation_batch(store, settings, model="dense_simple").mixture)


# ------------------------------------------------------------------------ kinds of condition


def cut(track, row, start):
    """Samples of one stem, in memory of their own."""
    out = np.full(track.samples, np.nan, np.float32)
    track.cut(row, start, out)
    return out


class OneHotBatches(TrainingBatches):
    """What training asked for before there were kinds: the order of random draws is the study's."""

    def batch(self, step):
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        train = self.settings.train
        rows = []
        for _ in range(train.batch_size):
            instrument = self.instrument
            if instrument is None:
                instrument = int(rng.integers(len(INSTRUMENTS)))
            track, start = self._place(rng)
            if rng.random() < train.remix:
                source = cut(track, 1 + instrument, start)
                mix = source.copy()
                for other in range(len(INSTRUMENTS)):
                    if other != instrument:
                        other_track, other_start = self._place(rng)
                        mix += cut(other_track, 1 + other, other_start)
            else:
                mix, source = (cut(track, row, start) for row in (0, 1 + instrument))
            level = np.float32(1.0)
            if self.instrument is None and rng.random() < train.progressive:
                level = np.float32(rng.random())
            rows.append((mix, source * level, level * np.eye(4, dtype=np.float32)[instrument]))
        return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize("model", ["dense_complex", "unet_other"])
@pytest.mark.parametrize("remix", [0.0, 0.25, 1.0])
def test_one_hot_conditions_keep_every_bit_of_the_batches(batches, model, remix):
    new, old = (
        batches(model, seed=4, kind=kind, remix=remix, batch_size=16)
        for kind in (TrainingBatches, OneHotBatches)
    )
    assert new.settings.train.conditions == ("one_hot",)
    for step in range(4):
        assert_equal(new.batch(step), old.batch(step))


@pytest.mark.parametrize("remix", [0.0, 1.0])
@pytest.mark.parametrize("kind", CONDITION_KINDS)
def test_target_is_the_sum_of_levels_times_sources(batches, kind, remix, monkeypatch):
    """Sources are recorded as they are cut; without remixing the mixture stays the track's own."""
    found = batches(conditions=(kind,), remix=remix, progressive=0.5, batch_size=12)
    recorded = []
    mix = TrainingBatches._mix

    def record(self, rng, track, start, asked, mixture, sources):
        names = mix(self, rng, track, start, asked, mixture, sources)
        (levels,) = asked
        stems = np.stack([cut(track, row, start) for row in range(5)])
        recorded.append((stems, mixture.copy(), sources.copy(), np.flatnonzero(levels)))
        return names

    monkeypatch.setattr(TrainingBatches, "_mix", record)
    batch = found.batch(2)
    assert len(recorded) == len(batch.mixture)
    for row, (stems, mixture, sources, wanted) in enumerate(recorded):
        levels = batch.condition[row]
        assert not levels[np.setdiff1d(range(4), wanted)].any()
        np.testing.assert_array_equal(sources[wanted], stems[1 + wanted])
        expected = levels @ stems[1:]
        np.testing.assert_allclose(batch.target[row], expected, atol=1e-6)
        np.testing.assert_array_equal(batch.mixture[row], mixture)
        own = stems[1:].sum(axis=0) if remix else stems[0]
        if not remix or len(wanted) == 4:
            np.testing.assert_allclose(mixture, own, atol=1e-6)
        else:
            # The wanted sources are in it, and something else than this place's other stems.
            others = np.setdiff1d(range(4), wanted)
            rest = mixture - sources[wanted].sum(axis=0)
            assert np.abs(rest - stems[1 + others].sum(axis=0)).max() > 1e-3


@pytest.mark.parametrize("remix", [0.0, 0.5, 1.0])
def test_a_mixture_is_asked_for_each_instrument_once(batches, remix):
    batch = batches(conditions_per_mixture=4, remix=remix, progressive=0.5, batch_size=16).batch(3)
    orders = set()
    for first in range(0, 16, 4):
        rows = slice(first, first + 4)
        mixture, condition, target = batch.mixture[rows], batch.condition[rows], batch.target[rows]
        assert (mixture == mixture[0]).all()
        asked = condition.argmax(axis=1)
        assert sorted(asked) == [0, 1, 2, 3]
        assert (np.count_nonzero(condition, axis=1) == 1).all()
        # The targets at full level are the sources, and those make up the mixture.
        levels = condition.max(axis=1)[:, None]
        np.testing.assert_allclose((target / levels).sum(axis=0), mixture[0], atol=1e-5)
        orders.add(tuple(asked))
    assert len(orders) > 1
    assert len({row.tobytes() for row in batch.mixture}) == 4


def test_conditions_beyond_the_instruments_begin_a_new_round(batches):
    found = batches("cnn_simple", conditions_per_mixture=8, progressive=0.0, batch_size=8)
    np.testing.assert_array_equal(found.batch(0).condition.sum(axis=0), 2)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("one_hot", lambda z: sorted(z) == [0, 0, 0, 1]),
        ("zero", lambda z: not z.any()),
        ("all", lambda z: (z == 1).all()),
        ("pairs", lambda z: sorted(z) == [0, 0, 1, 1]),
        ("continuous", lambda z: ((z > 0) & (z < 1)).all() and len(set(z)) == 4),
    ],
)
def test_each_kind_asks_for_what_it_says(batches, kind, allowed):
    found = batches("cnn_simple", conditions=(kind,), progressive=0.0, batch_size=64)
    conditions = conditions_of(found, 4)
    assert all(allowed(z) for z in conditions)
    if kind == "pairs":
        assert len({tuple(z) for z in conditions}) == len(PAIRS) == 6
    if kind == "continuous":
        np.testing.assert_allclose(conditions.mean(axis=0), 0.5, atol=0.08)


def test_kinds_are_drawn_evenly_and_twice_as_often_when_listed_twice(batches):
    kinds = ("one_hot", "one_hot", "zero", "all")
    found = batches(conditions=kinds, progressive=0.0, batch_size=64)
    active = conditions_of(found, 20).sum(axis=1)
    for number, share in ((1, 0.5), (0, 0.25), (4, 0.25)):
        assert (active == number).mean() == pytest.approx(share, abs=0.05)


def test_progressive_leaves_the_other_kinds_alone(batches):
    batch = batches(conditions=("all", "pairs"), progressive=1.0, batch_size=32).batch(0)
    assert set(np.unique(batch.condition)) == {0.0, 1.0}


def test_what_is_asked_changes_neither_a_dedicated_unet_nor_validation(batches, validation):
    for asked in ({"conditions": ("zero", "continuous")}, {"conditions_per_mixture": 2}):
        assert_equal(batches("unet_bass").batch(3), batches("unet_bass", **asked).batch(3))
        assert_equal(validation(), validation(**asked))
