"""What lies above the frequencies that a network hears: learned, added up, refused if damaged."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import untrained_run, write_tones
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.explore import conditioning
from cunet_lib.preprocess.tracks import Originals, Source, decode
from cunet_lib.report import tables
from cunet_lib.separation import catalog, songs
from cunet_lib.separation.highs import FILE, Highs
from cunet_lib.signal.bands import (
    ABOVE,
    INPUTS,
    RATE,
    band_of,
    features,
    levels_above,
    members,
    spectrum_above,
)
from cunet_lib.signal.spectral import stft
from cunet_lib.train import highs


def equal(magnitude):
    """Shares of a network that knows nothing."""
    return np.full((len(INSTRUMENTS), *magnitude.shape), 0.25, np.float32)


def knows_nothing(signal):
    """In place of a separator."""
    return SimpleNamespace(
        signal=signal,
        hear=lambda mixture: np.abs(stft(mixture, signal))[None],
        shares=lambda heard: equal(heard[0]),
    )


@pytest.fixture(scope="module")
def originals(tones):
    return Originals(tones[0], RATE)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Tracks enough to learn from what they have in common."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNET_DATA", str(tmp_path_factory.mktemp("data")))
        settings = load_profile("smoke")
        write_tones(settings.paths.corpus, train=9, test=1)
        return Originals(settings, RATE)


@pytest.fixture(scope="module")
def learned(tones, many, tmp_path_factory):
    """Weights of a network that was taught on tones and bursts of noise."""
    path = tmp_path_factory.mktemp("highs") / "models" / FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(highs, "BATCH", 16)  # as many steps from few frames
        highs.learn(many, knows_nothing(tones[0].signal), path)
    return path


def band_sdr(reference, estimate, rate, low, high):
    """SDR of ``(samples,)`` between two frequencies in Hz."""
    hertz = np.fft.rfftfreq(len(reference), 1 / rate)
    spectra = (
        np.fft.rfft(sound) * ((hertz > low) & (hertz < high)) for sound in (reference, estimate)
    )
    return whole_sdr(*(np.fft.irfft(spectrum, len(reference)) for spectrum in spectra))


def test_originals_are_the_stores_tracks_at_full_rate(tones, originals):
    for split in ("train", "valid", "test"):
        names = [entry.name for entry in tones[1].split(split)]
        assert [source.name for source in originals.split(split)] == names
    (first, *_) = originals.split("test")
    stems = originals.audio(first)
    assert stems.shape == (5, 4 * RATE, 2) and stems.dtype == np.float32
    np.testing.assert_allclose(stems.mean(axis=-1), decode(first, RATE), atol=1e-6)
    mono = first.path.parent / "mono"
    mono.mkdir()
    for path in first.path.glob("*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(mono / path.name, samples[:, 1], rate, subtype="PCM_16")
    both = Originals(tones[0], 8000).audio(Source("mono", "test", mono))
    assert both.shape == (5, 4 * 8000, 2)
    np.testing.assert_array_equal(both[..., 0], both[..., 1])
    shutil.rmtree(mono)


def test_bands_cover_what_is_not_heard(tones):
    """Each bin above half the study rate lies in one band; a tone is as loud as it is below."""
    signal, rate = tones[0].signal, tones[0].signal.sample_rate
    member = members(signal)
    assert (member.sum(axis=0) == 1).all() and member.any(axis=1).all()
    time = np.arange(2 * RATE) / RATE
    for hertz in (4500, 9000, 21000):
        spectrum = spectrum_above(np.sin(2 * np.pi * hertz * time), signal, 40)
        assert spectrum.shape == (member.shape[1], 40)
        found = levels_above(spectrum, signal)[:, 20]
        assert np.argmax(found) == band_of(np.array([hertz]), signal)[0]
        below = np.abs(stft(np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate), signal))[:, 20]
        assert found @ member.sum(axis=1) == pytest.approx((below**2).sum(), rel=0.02)
    edges = np.array([100, rate / 2 + 1, RATE / 2 - 1, RATE])
    assert band_of(edges, signal).tolist() == [0, 0, ABOVE - 1, ABOVE - 1]


def test_what_is_told_does_not_depend_on_the_level(rng):
    magnitude = rng.random((513, 6))
    above = rng.random((ABOVE, 6))
    told = features(equal(magnitude), magnitude, above)
    assert told.shape == (6, INPUTS)
    np.testing.assert_allclose(
        features(equal(magnitude), 9 * magnitude, 81 * above), told, atol=1e-6
    )
    assert (features(equal(magnitude), 0 * magnitude, 0 * above) == -1).all()
    alone = features(equal(magnitude), 0 * magnitude, above)
    np.testing.assert_allclose(
        features(equal(magnitude), 0 * magnitude, 9 * above), alone, atol=1e-6
    )
    assert alone.min() >= -1 and alone.max() <= 1


def test_the_highs_go_to_whom_they_belong(tones, many, learned):
    """Bursts of noise to the drums, steady overtones not; in a song that taught nothing."""
    signal = tones[0].signal
    (source,) = many.split("valid")
    magnitude = np.abs(stft(decode(source, signal.sample_rate)[0], signal))
    mixture, *stems = (
        spectrum_above(sound, signal, magnitude.shape[1])
        for sound in many.audio(source).mean(axis=-1)
    )
    shares = Highs(learned)(equal(magnitude), magnitude, levels_above(mixture, signal))
    assert shares.shape == (len(INSTRUMENTS), ABOVE, magnitude.shape[1])
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    masks = np.einsum("ibt,bf->ift", shares, members(signal))
    found, unknowing = (
        (np.abs(stems - mask * mixture) ** 2).sum(axis=(1, 2)) for mask in (masks, 0.25)
    )
    assert (found < [0.01, 0.8, 0.4, 0.01] * unknowing).all()
    assert learned.stat().st_size < 200_000


def test_songs_take_them_where_they_lie_beside_a_model(tones, learned, tmp_path, rng):
    """Parts add up to the song at any rate, and one alone is the same; there are none when cut."""
    settings = tones[0]
    path = untrained_run(settings, "shares", tmp_path / "run")
    song = (0.1 * rng.normal(size=(30000, 2))).astype(np.float32)
    plain = songs.separate(song, 32000, model=path)
    (path.parent / FILE).write_bytes(learned.read_bytes())
    model = songs.SongSeparator(catalog.describe(path))
    parts = songs.separate(song, 32000, model=model)
    np.testing.assert_allclose(sum(parts.values()), song, atol=1e-5)
    alone = songs.separate(song, 32000, instruments=["drums"], model=model)["drums"]
    np.testing.assert_allclose(alone, parts["drums"], atol=1e-6)
    for name in INSTRUMENTS:
        both = plain[name][:, 0], parts[name][:, 0]
        assert band_sdr(*both, 32000, 0, 3500) > 40
        assert band_sdr(*both, 32000, 4600, 16000) < 20
    cut = songs.SongSeparator(catalog.describe(path), highs="cut")
    silent = songs.separate(song, 32000, instruments=["drums"], model=cut)["drums"][:, 0]
    assert band_sdr(plain["drums"][:, 0], silent, 32000, 4600, 16000) < 0.01
    slow = songs.separate(song[:, 0], 8000, model=model)
    np.testing.assert_allclose(sum(slow.values()), song[:, 0], atol=1e-5)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_weights_are_refused(learned, tmp_path, data):
    """Cut anywhere, or with another byte: in a header, where reading fails in many ways, or not."""
    content = bytearray(learned.read_bytes())
    headers = [place.start() for place in re.finditer(b"PK|NUMPY", content)]
    near = st.sampled_from(headers).flatmap(lambda place: st.integers(place, place + 120))
    start = data.draw(near | st.integers(0, len(content) - 1)) % len(content)
    if data.draw(st.booleans()):
        content = content[:start]
    else:
        content[start] ^= data.draw(st.integers(1, 255))
    path = tmp_path / FILE
    path.write_bytes(content)
    try:
        found = Highs(path)
    except ConfigError as error:
        assert FILE in str(error) and "make beyond" in str(error)
    else:  # a byte that no reader looks at
        magnitude = np.ones((513, 3))
        assert np.isfinite(found(equal(magnitude), magnitude, np.ones((ABOVE, 3)))).all()


def test_weights_of_another_shape_are_refused(learned, tmp_path):
    with np.load(learned) as file:
        weights = [file[name] for name in file.files]
    path = tmp_path / FILE
    endless = [np.full_like(weights[0], np.inf), *weights[1:]]
    scalar = [weights[0], np.float16(1), *weights[2:]]
    cut = [*weights[:5], weights[5][1:]]
    for some in (weights[:4], weights[::-1], cut, endless, scalar, [], [np.array([print])]):
        np.savez(path, *some)
        with pytest.raises(ConfigError, match="damaged"):
            Highs(path)
    with path.open("wb") as file:
        np.save(file, weights[0])
    with pytest.raises(ConfigError, match="damaged"):
        Highs(path)


def test_a_network_that_hears_everything_leaves_nothing_to_learn(tones, originals, tmp_path):
    signal = tones[0].signal.model_copy(update={"sample_rate": RATE})
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        highs.learn(originals, knows_nothing(signal), tmp_path / FILE)
    assert not list(tmp_path.iterdir())


def test_sdr_of_the_highs_knows_nothing_of_what_lies_below(tones, originals, monkeypatch):
    """Half of each stem above, something else below: 6 dB; silence above: 0 dB."""
    settings = tones[0]
    source, *_ = originals.split("test")
    monkeypatch.setattr(originals, "split", lambda name: [source])
    stems = originals.audio(source)[1:]
    high = np.fft.rfftfreq(stems.shape[1], 1 / RATE)[:, None] > settings.signal.sample_rate / 2
    wrong = np.fft.rfft(stems, axis=1) * np.where(high, [[[0.5]], [[0.5]], [[0]], [[0.5]]], 3)
    found = np.fft.irfft(wrong, stems.shape[1], axis=1)
    given = dict(zip(INSTRUMENTS, found, strict=True))
    monkeypatch.setattr(conditioning, "separate", lambda *_, **__: given)
    about = lambda frame, **columns: frame.assign(model="shares", seed=0, **columns)  # noqa: E731
    separator = SimpleNamespace(signal=settings.signal)
    run = SimpleNamespace(shipped=None, separator=separator, about=about)
    frame = conditioning.highs(run, originals)
    np.testing.assert_allclose(frame["highs_db"], [6.02, 6.02, 0, 6.02], atol=0.01)
    table = tables.highs_table(settings, frame)
    assert list(table.display["Instrument"]) == list(INSTRUMENTS)
    assert table.display["SDR of the highs, dB"][1] == "6.02 (6.02 to 6.02)"
    assert "4096 Hz" in table.caption and table.caption.count(". ") == 1
