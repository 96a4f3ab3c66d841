"""Batches: seeded by step, right targets, no peeking."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cunet_lib.core.settings import CONDITION_KINDS
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import PAIRS
from cunet_lib.train.batches import Batch, TrainingBatches, validation_batch


def with_train(settings, **changes):
    return settings.model_copy(update={"train": settings.train.model_copy(update=changes)})


@pytest.mark.parametrize("kinds", [("one_hot",), CONDITION_KINDS])
def test_a_batch_is_a_function_of_seed_and_step(tones, kinds):
    settings, store = tones
    settings = with_train(settings, conditions=kinds)
    first, again, other = (
        TrainingBatches(store, settings, model="dense_simple", seed=seed) for seed in (1, 1, 2)
    )
    for step in (0, 7):
        for name in ("mixture", "target", "condition"):
            one, two = getattr(first.batch(step), name), getattr(again.batch(step), name)
            np.testing.assert_array_equal(one, two)
    assert np.abs(first.batch(0).mixture - first.batch(1).mixture).max() > 0
    assert np.abs(first.batch(0).mixture - other.batch(0).mixture).max() > 0


def test_dataset_gives_the_same_batches_from_any_step_on(tones):
    settings, store = tones
    batches = TrainingBatches(store, settings, model="cnn_simple", seed=0)
    for step, ((mixture, condition), target) in zip(
        range(5, 9), batches.from_step(5), strict=False
    ):
        expected = batches.batch(step)
        np.testing.assert_array_equal(mixture, expected.mixture)
        np.testing.assert_array_equal(condition, expected.condition)
        np.testing.assert_array_equal(target, expected.target)


def test_dedicated_unet_gets_its_instrument_at_full_level(tones):
    settings, store = tones
    settings = with_train(settings, remix=0.0, progressive=1.0, batch_size=8)
    batch = TrainingBatches(store, settings, model="unet_drums", seed=0).batch(0)
    np.testing.assert_array_equal(batch.condition, np.tile([0, 1, 0, 0], (8, 1)))
    # Noise bursts in the target, and the mixture holds them too.
    assert np.abs(batch.target).max() > 0
    never = with_train(settings, progressive=0.0)
    full = TrainingBatches(store, never, model="unet_drums", seed=0).batch(0)
    np.testing.assert_array_equal(batch.target, full.target)
    (mixture, target) = next(
        iter(TrainingBatches(store, settings, model="unet_drums", seed=0).from_step())
    )
    assert mixture.shape == target.shape == (8, settings.patch_samples)


def test_without_augmentation_the_target_is_the_stem_under_the_mixture(tones):
    settings, store = tones
    settings = with_train(settings, remix=0.0, progressive=0.0, batch_size=16)
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(3)
    tracks = [(store.audio(entry), entry.scale) for entry in store.split("train")]
    for mixture, target, condition in zip(
        batch.mixture, batch.target, batch.condition, strict=True
    ):
        stem = 1 + int(np.argmax(condition))
        assert sorted(condition) == [0, 0, 0, 1]
        assert any(_holds(audio / scale, mixture, target, stem) for audio, scale in tracks)


def _holds(audio, mixture, target, stem):
    """Whether mixture and target stand at one place of the track."""
    length = len(mixture)
    heads = sliding_window_view(audio[0, : audio.shape[1] - length + 32], 32)
    for start in np.flatnonzero(np.abs(heads - mixture[:32]).max(axis=1) < 1e-6):
        place = audio[:, start : start + length]
        if np.allclose(place[[0, stem]], [mixture, target], atol=1e-6):
            return True
    return False


def test_progressive_scales_condition_and_target_together(tones):
    settings, store = tones
    plain = with_train(settings, remix=0.0, progressive=0.0, batch_size=64)
    scaled = with_train(settings, remix=0.0, progressive=1.0, batch_size=64)
    batch = TrainingBatches(store, scaled, model="dense_simple", seed=0).batch(0)
    levels = batch.condition.max(axis=1)
    assert 0 < levels.min() < 0.2 and 0.8 < levels.max() < 1
    assert 0.35 < levels.mean() < 0.65
    full = TrainingBatches(store, plain, model="dense_simple", seed=0).batch(0)
    # The first row's place is drawn before its level, so that it is the same in both.
    np.testing.assert_array_equal(full.mixture[0], batch.mixture[0])
    np.testing.assert_allclose(batch.target[0], full.target[0] * levels[0], rtol=1e-5)


def test_probabilities_are_the_settings(tones):
    settings, store = tones
    settings = with_train(settings, progressive=0.25, batch_size=64)
    batches = TrainingBatches(store, settings, model="dense_simple", seed=0)
    conditions = np.concatenate([batches.batch(step).condition for step in range(25)])
    assert ((conditions.max(axis=1) < 1).mean()) == pytest.approx(0.25, abs=0.04)
    shares = (conditions > 0).mean(axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.04)


def test_remix_replaces_the_other_instruments_with_the_set_probability(tones):
    settings, store = tones
    tracks = [(store.audio(entry), entry.scale) for entry in store.split("train")]
    for remix in (0.0, 0.25, 1.0):
        changed = with_train(settings, remix=remix, batch_size=32)
        batches = [
            TrainingBatches(store, changed, model="unet_other", seed=0).batch(step)
            for step in range(4)
        ]
        mixed = [
            not any(_holds(audio / scale, mixture, target, 3) for audio, scale in tracks)
            for batch in batches
            for mixture, target in zip(batch.mixture, batch.target, strict=True)
        ]
        assert np.mean(mixed) == pytest.approx(remix, abs=0.12)


def test_remix_keeps_the_target_inside_the_mixture(tones):
    settings, store = tones
    settings = with_train(settings, remix=1.0, progressive=0.0, batch_size=32)
    batch = TrainingBatches(store, settings, model="unet_vocals", seed=0).batch(0)
    rest = batch.mixture - batch.target

    # What is left is made of other stems: it has less of the target than the mixture has.
    def share(audio):
        return np.abs(np.sum(audio * batch.target, axis=1)) / np.sum(batch.target**2, axis=1)

    assert (share(batch.mixture) > 0.5).all()
    assert (share(rest) < 0.5).all()


def test_no_training_batch_touches_validation_or_test_tracks(tones, monkeypatch):
    settings, store = tones
    opened = []
    audio = type(store).audio
    monkeypatch.setattr(
        type(store), "audio", lambda self, entry: opened.append(entry.split) or audio(self, entry)
    )
    settings = with_train(settings, remix=1.0)
    batches = TrainingBatches(store, settings, model="dense_simple", seed=0)
    for step in range(20):
        batches.batch(step)
    assert set(opened) == {"train"}
    opened.clear()
    validation_batch(store, settings, model="dense_simple")
    assert set(opened) == {"valid"}


def test_validation_asks_for_every_instrument_of_every_patch(tones):
    settings, store = tones
    batch = validation_batch(store, settings, model="cnn_complex")
    assert len(batch.condition) % len(INSTRUMENTS) == 0
    np.testing.assert_array_equal(batch.condition.sum(axis=0), len(batch.condition) / 4)
    again = validation_batch(store, settings, model="cnn_complex")
    np.testing.assert_array_equal(batch.target, again.target)
    few = validation_batch(store, with_train(settings, validation_patches=1), model="cnn_complex")
    np.testing.assert_array_equal(few.condition, np.eye(4))
    alone = validation_batch(store, settings, model="unet_bass")
    assert {tuple(row) for row in alone.condition} == {(1, 0, 0, 0)}


def test_tracks_shorter_than_a_patch_are_padded(tones):
    settings, store = tones
    model = settings.model.model_copy(update={"patch_frames": 256})
    settings = settings.model_copy(update={"model": model})
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
def test_one_hot_conditions_keep_every_bit_of_the_batches(tones, model, remix):
    settings, store = tones
    settings = with_train(settings, remix=remix, batch_size=16)
    assert settings.train.conditions == ("one_hot",)
    new, old = (
        kind(store, settings, model=model, seed=4) for kind in (TrainingBatches, OneHotBatches)
    )
    for step in range(4):
        for name in ("mixture", "target", "condition"):
            one, two = getattr(new.batch(step), name), getattr(old.batch(step), name)
            assert one.dtype == two.dtype == np.float32
            assert one.tobytes() == two.tobytes(), f"{name} of step {step}"


@pytest.mark.parametrize("remix", [0.0, 1.0])
@pytest.mark.parametrize("kind", CONDITION_KINDS)
def test_target_is_the_sum_of_levels_times_sources(tones, kind, remix, monkeypatch):
    """Sources are recorded as they are cut; without remixing the mixture stays the track's own."""
    settings, store = tones
    settings = with_train(settings, conditions=(kind,), remix=remix, progressive=0.5, batch_size=12)
    batches = TrainingBatches(store, settings, model="dense_simple", seed=0)
    recorded = []
    mix = TrainingBatches._mix

    def record(self, rng, track, start, asked, mixture, sources):
        names = mix(self, rng, track, start, asked, mixture, sources)
        (levels,) = asked
        stems = np.stack([cut(track, row, start) for row in range(5)])
        recorded.append((stems, mixture.copy(), sources.copy(), np.flatnonzero(levels)))
        return names

    monkeypatch.setattr(TrainingBatches, "_mix", record)
    batch = batches.batch(2)
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
def test_a_mixture_is_asked_for_each_instrument_once(tones, remix):
    settings, store = tones
    settings = with_train(
        settings, conditions_per_mixture=4, remix=remix, progressive=0.5, batch_size=16
    )
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(3)
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


def test_conditions_beyond_the_instruments_begin_a_new_round(tones):
    settings, store = tones
    settings = with_train(settings, conditions_per_mixture=8, progressive=0.0, batch_size=8)
    condition = TrainingBatches(store, settings, model="cnn_simple", seed=0).batch(0).condition
    np.testing.assert_array_equal(condition.sum(axis=0), 2)


def test_conditions_per_mixture_leave_a_dedicated_unet_alone(tones):
    settings, store = tones
    one, two = (
        TrainingBatches(store, each, model="unet_drums", seed=0).batch(1)
        for each in (settings, with_train(settings, conditions_per_mixture=2))
    )
    np.testing.assert_array_equal(one.mixture, two.mixture)
    np.testing.assert_array_equal(one.target, two.target)


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
def test_each_kind_asks_for_what_it_says(tones, kind, allowed):
    settings, store = tones
    settings = with_train(settings, conditions=(kind,), progressive=0.0, batch_size=64)
    batches = TrainingBatches(store, settings, model="cnn_simple", seed=0)
    conditions = np.concatenate([batches.batch(step).condition for step in range(4)])
    assert all(allowed(z) for z in conditions)
    if kind == "pairs":
        assert len({tuple(z) for z in conditions}) == len(PAIRS) == 6
    if kind == "continuous":
        np.testing.assert_allclose(conditions.mean(axis=0), 0.5, atol=0.08)


def test_kinds_are_drawn_evenly_and_twice_as_often_when_listed_twice(tones):
    settings, store = tones
    kinds = ("one_hot", "one_hot", "zero", "all")
    settings = with_train(settings, conditions=kinds, progressive=0.0, batch_size=64)
    batches = TrainingBatches(store, settings, model="dense_simple", seed=0)
    active = np.concatenate([batches.batch(step).condition.sum(axis=1) for step in range(20)])
    for number, share in ((1, 0.5), (0, 0.25), (4, 0.25)):
        assert (active == number).mean() == pytest.approx(share, abs=0.05)


def test_progressive_leaves_the_other_kinds_alone(tones):
    settings, store = tones
    settings = with_train(settings, conditions=("all", "pairs"), progressive=1.0, batch_size=32)
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(0)
    assert set(np.unique(batch.condition)) == {0.0, 1.0}


def test_kinds_change_neither_a_dedicated_unet_nor_validation(tones):
    settings, store = tones
    changed = with_train(settings, conditions=("zero", "continuous"))
    for build in (
        lambda each: TrainingBatches(store, each, model="unet_bass", seed=0).batch(3),
        lambda each: validation_batch(store, each, model="dense_simple"),
    ):
        one, two = build(settings), build(changed)
        for name in ("mixture", "target", "condition"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
