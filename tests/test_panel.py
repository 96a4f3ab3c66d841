"""The control panel without a browser: sliders are moved as the browser would move them."""

import asyncio
import base64
import datetime
import io
import json
import tracemalloc

import numpy as np
import pytest
import soundfile
from conftest import changed, run_record

from benchmarks import workloads
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.explore import panel as explore
from cunet_lib.explore import steering
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import all_one_hot, label
from cunet_lib.models.film import film_parameters
from cunet_lib.models.weights import save_half
from cunet_lib.separation import catalog
from cunet_lib.separation.separator import Separator
from cunet_lib.signal.spectral import stft

SETTINGS = load_profile("smoke")
RATE = SETTINGS.signal.sample_rate
SIZE = {"shape": SETTINGS.patch_shape, "filters": 2, "blocks": 4, "start": "he"}
SECONDS = 3.0


@pytest.fixture(scope="module")
def network(request):
    return models.build(getattr(request, "param", "cnn_simple"), **SIZE)


both = pytest.mark.parametrize("network", ["cnn_simple", "shares"], indirect=True)
"""Masks of shares are computed once, and added up."""


@pytest.fixture(scope="module")
def audio():
    """Five seconds: mixture first, four stems that add up to it; the last second is the loudest."""
    stems = np.random.default_rng(5).normal(size=(4, 5 * RATE)).astype(np.float32) * 0.05
    stems[:, 4 * RATE :] *= 3
    return np.concatenate([stems.sum(axis=0, keepdims=True), stems])


@pytest.fixture(scope="module")
def panel(network, audio):
    songs = {"known": lambda: audio, "mixture only": lambda: audio[:1, : 2 * RATE]}
    return explore.Explorer(network, SETTINGS, songs, seconds=SECONDS)


@pytest.fixture
def explorer(panel):
    """The panel as it is when it opens; building it takes longer than moving it."""
    panel.song.value = "known"
    return panel.set(vocals=1.0)


def shown(explorer):
    """Everything that a browser would see or play."""
    sounds = {name: bytes(player.value) for name, player in explorer.audio.items()}
    return {**sounds, "picture": bytes(explorer.picture.value)}


def read(content):
    return soundfile.read(io.BytesIO(content), dtype="float32")


def upload(explorer, name, content):
    explorer.upload.value = (
        {
            "name": name,
            "type": "audio/wav",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.datetime.now(datetime.timezone.utc),
        },
    )


# ------------------------------------------------------------------------------ what is computed


@both
def test_one_instrument_is_the_separator_s_estimate(explorer, network, audio):
    separator = Separator(network, SETTINGS.signal, SETTINGS.separate)
    first = round(explorer.start.value * RATE)
    mixture = audio[0, first : first + round(SECONDS * RATE)]
    for place, name in enumerate(INSTRUMENTS):
        explorer.set(**{name: 1.0})
        (expected,) = separator(mixture, all_one_hot()[place][None])
        np.testing.assert_allclose(explorer.steered.estimate, expected, atol=2e-6)
        (mask,) = separator.masks(separator.hear(mixture), all_one_hot()[place][None])
        np.testing.assert_allclose(explorer.steered.mask, mask, atol=1e-5)


def drawn(explorer):
    """Points and levels of the curves that the picture shows, by instrument."""
    lines = explorer._picture.curves
    return {name: line.get_data() for name, line in lines.items() if len(line.get_xdata())}


@both
def test_curves_pass_through_the_present_level(explorer):
    explorer.set(bass=0.6, drums=0.25)
    for place, name in enumerate(INSTRUMENTS):
        z, levels = drawn(explorer)[name]
        assert z[0] == 0 and z[-1] == 1 and np.all(np.diff(z) > 0)
        (at,) = np.flatnonzero(np.isclose(z, explorer.z[place]))
        assert levels[at] == explorer.steered.level
        # The other points come from fewer patches.
        exact = explorer.steering(np.where(np.arange(4) == place, 1.0, explorer.z)).level
        assert levels[-1] == pytest.approx(exact, abs=0.02)


def test_in_a_kernel_the_answer_comes_first_and_the_curves_follow(explorer, monkeypatch):
    """Where an event loop runs; a move meanwhile gives up what no longer fits."""
    asked, curve = [], explorer.steering.curve
    monkeypatch.setattr(explore, "PAUSE", 0.01)
    monkeypatch.setattr(
        explorer.steering, "curve", lambda z, name: asked.append((z[1], name)) or curve(z, name)
    )
    explorer.set(vocals=1.0, drums=0.4)
    asked.clear()

    async def move():
        explorer.sliders["drums"].value = 0.6
        first, answer = set(drawn(explorer)), shown(explorer)
        assert not asked
        while not asked:
            await asyncio.sleep(0.01)
        explorer.sliders["drums"].value = 0.7
        given_up = len(asked)
        while set(drawn(explorer)) != set(INSTRUMENTS):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return first, answer, asked[given_up:]

    first, answer, later = asyncio.run(move())
    assert first == {"drums"}  # its own curve stays while it moves
    assert later == [(np.float32(0.7), name) for name in INSTRUMENTS if name != "drums"]
    after = shown(explorer)
    assert after["estimate"] != answer["estimate"] and after["picture"] != answer["picture"]
    np.testing.assert_array_equal(drawn(explorer)["drums"][0], [0, 0.5, np.float32(0.7), 1])


def test_latency_is_measured(network):
    answers = workloads.answer_times(network, SETTINGS, seconds=SECONDS, moves=3)
    assert len(answers) == 3 and min(answers) > 0


def test_level_is_that_of_the_masked_mixture(explorer):
    spectrogram = stft(explorer.steering.mixture, SETTINGS.signal)
    masked = np.linalg.norm(explorer.steered.mask * spectrogram)
    assert explorer.steered.level == pytest.approx(masked / np.linalg.norm(spectrogram), rel=1e-5)


@both
def test_a_stretch_shorter_than_a_patch_and_silence_are_no_errors(network):
    steered_by = steering.Steering(network, SETTINGS.signal, SETTINGS.separate)
    for mixture in (np.ones(300, np.float32), np.zeros(RATE, np.float32)):
        steered_by.load(mixture)
        steered = steered_by(all_one_hot()[0])
        assert steered.estimate.shape == mixture.shape and np.isfinite(steered.estimate).all()
        assert np.isfinite(steered_by.curve(steered.z, "drums")[1]).all()
    assert steered.level == 0 and not steered.estimate.any()


# ------------------------------------------------------------------------------ what is shown


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_moving_a_slider_changes_picture_and_sound(explorer, name):
    explorer.set(vocals=0.5, drums=0.5)
    before = shown(explorer)
    explorer.sliders[name].value = 0.8
    after = shown(explorer)
    assert after["mixture"] == before["mixture"]
    for part in ("picture", "estimate", "reference", "rest"):
        assert after[part] != before[part], part


def test_players_hold_what_was_computed(explorer):
    explorer.set(drums=0.5, bass=1.0)
    mixture = explorer.steering.mixture
    gain = 1 / np.abs(mixture).max()
    heard = explorer.heard()
    assert list(heard)[:2] == ["mixture", "estimate: bass + 0.5 drums"]
    for name, expected in zip(explorer.audio, heard.values(), strict=True):
        sound, rate = read(bytes(explorer.audio[name].value))
        assert rate == RATE
        np.testing.assert_allclose(sound, np.clip(expected * gain, -1, 1), atol=1e-4)
    np.testing.assert_allclose(heard["reference"], explorer.z @ explorer._stretch[1:], atol=1e-6)


@both
def test_gammas_betas_and_faders_follow(explorer, network):
    picture = explorer._picture
    for levels in ({"vocals": 1.0}, {"bass": 0.7, "other": 0.2}):
        explorer.set(**levels)
        titles = [ax.get_title(loc="left") for ax in picture.canvas.axes[:4]]
        assert titles[2] == f"Estimate: {label(explorer.z)}"
        assert not any(ax.get_title(loc="center") for ax in picture.canvas.axes)
        table = film_parameters(network, explorer.z[None])
        for name in ("gamma", "beta"):
            values = picture.points[f"{name}s"].get_ydata()
            np.testing.assert_array_equal(values, getattr(explorer.steered, f"{name}s"))
            np.testing.assert_allclose(values, table[name], atol=1e-5)
        for place, name in enumerate(INSTRUMENTS):
            ((x,), (y,)) = picture.markers[name].get_data()
            assert (x, y) == (explorer.z[place], explorer.steered.level)


def test_a_notebook_shows_the_panel_and_keeps_its_picture(explorer):
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == explorer.picture.value and len(bundle) == 3


def test_equal_positions_give_equal_bytes(explorer):
    first = shown(explorer.set(vocals=0.4))
    explorer.set(drums=1.0)
    assert shown(explorer.set(vocals=0.4)) == first


def test_buttons_and_code_move_the_sliders(explorer):
    explorer.set(bass=0.25)
    assert [slider.value for slider in explorer.sliders.values()] == [0.25, 0, 0, 0]
    explorer.buttons["all"].click()
    assert explorer.z.tolist() == [1, 1, 1, 1]
    explorer.buttons["none"].click()
    assert explorer.z.tolist() == [0, 0, 0, 0] and "silence" in explorer.status.value
    with pytest.raises(ConfigError, match="cello"):
        explorer.set(cello=1.0)


def test_moving_sliders_does_not_grow_memory(explorer):
    """Artists are moved, not added, and nothing that was computed is kept but the last."""

    def move():
        for step in range(3):
            explorer.set(vocals=step / 3, drums=1 - step / 3)

    move()
    count = len(explorer._picture.canvas.findobj())
    tracemalloc.start()
    try:
        move()
        before = tracemalloc.get_traced_memory()[0]
        move()
        move()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(explorer._picture.canvas.findobj()) == count
    assert grown < 200_000, f"{grown} bytes after 6 moves"


# ------------------------------------------------------------------------------ songs


def test_it_opens_where_the_singing_is_loudest(explorer):
    assert explorer.start.value == pytest.approx(5 - SECONDS, abs=0.01)
    before = shown(explorer)
    explorer.start.value = 0.5
    np.testing.assert_array_equal(
        explorer.steering.mixture, explorer._audio[0, RATE // 2 : RATE // 2 + round(SECONDS * RATE)]
    )
    assert shown(explorer)["mixture"] != before["mixture"]


def test_without_stems_there_is_no_reference(explorer):
    explorer.song.value = "mixture only"
    assert explorer.start.disabled and len(explorer.steering.mixture) == 2 * RATE
    assert "reference" not in explorer.heard()
    assert explorer._players["reference"].layout.display == "none"
    assert "SDR" not in explorer.status.value
    explorer.song.value = "known"
    assert "reference" in explorer.heard() and "SDR" in explorer.status.value
    assert explorer._players["reference"].layout.display is None


def test_an_upload_becomes_the_song(explorer, audio):
    buffer = io.BytesIO()
    stereo = np.stack([audio[1], audio[2]], axis=1)
    soundfile.write(buffer, stereo, RATE, format="WAV", subtype="FLOAT")
    upload(explorer, "mine.wav", buffer.getvalue())
    assert explorer.song.value == "mine.wav" and explorer.upload.value == ()
    length = len(explorer.steering.mixture)
    first = round(explorer.start.value * RATE)
    expected = stereo.mean(axis=1)[first : first + length]
    np.testing.assert_allclose(explorer.steering.mixture, expected, atol=1e-6)


def test_a_file_that_is_no_audio_is_one_sentence_and_changes_nothing(explorer):
    before = shown(explorer)
    upload(explorer, "<b>notes</b>.txt", b"no sound in here")
    assert "cannot be read as audio" in explorer.status.value
    assert "<b>notes" not in explorer.status.value
    assert explorer.song.value == "known" and shown(explorer) == before


def test_store_s_test_songs_come_first_and_the_real_excerpt_is_always_there(tones, monkeypatch):
    settings, store = tones
    found = steering.songs(settings)
    assert list(found) == [*(entry.name for entry in store.split("test")), steering.EXCERPT]
    np.testing.assert_array_equal(next(iter(found.values()))(), store.audio(store.split("test")[0]))
    audio = found[steering.EXCERPT]()
    assert audio.shape[0] == 5 and audio.shape[1] > 5 * RATE
    monkeypatch.setenv("CUNET_DATA", "/a/fresh/clone")
    assert list(steering.songs(SETTINGS)) == [steering.EXCERPT]


# ------------------------------------------------------------------------------ models


@pytest.fixture
def elsewhere(roots, monkeypatch):
    """Results and project in an empty folder; the models folders of a profile in them."""
    monkeypatch.setattr(catalog, "ROOT", roots / "project")
    return [root / "results" / "demo" / "models" for root in (roots, roots / "project")]


def shipped(network, folder):
    """Save a model with a record of its training."""
    save_half(network, folder / "cnn_complex.keras")
    record = run_record(SETTINGS, "cnn_complex")
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def test_the_shipped_model_is_found_and_computes_in_single_precision(elsewhere):
    network = models.build("cnn_complex", **SIZE)
    for folder in elsewhere:
        shipped(network, folder)
        found = steering.load_network(SETTINGS)
        assert found.name == "cnn_complex"
        assert {weight.dtype for weight in found.weights} == {"float32"}
        (folder / "cnn_complex.keras").unlink()


def test_a_missing_or_unfit_model_is_one_sentence(elsewhere):
    with pytest.raises(ConfigError, match=r"no trained model .*; run `make reproduce`"):
        steering.load_network(SETTINGS)
    with pytest.raises(ConfigError, match=r"dense_simple-seed3.*missing; run `make reproduce`"):
        steering.load_network(SETTINGS, "dense_simple", seed=3)
    shipped(models.build("cnn_complex", **SIZE), elsewhere[0])
    for other in ({"sample_rate": 16000}, {"n_fft": 512}, {"hop": 128}):
        with pytest.raises(ConfigError, match="with these signal settings"):
            steering.load_network(changed(SETTINGS, "signal", **other))
