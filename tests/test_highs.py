"""What lies above the frequencies that a network hears: learned, added up, refused if damaged."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import untrained_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.explore import conditioning
from cunet_lib.preprocess.tracks import Originals, decode
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


@pytest.fixture(scope="module")
def originals(tones):
    return Originals(tones[0], RATE)


@pytest.fixture(scope="module")
def learned(tones, originals, tmp_path_factory):
    """Weights of a network that was taught on tones and bursts of noise."""
    path = tmp_path_factory.mktemp("highs") / "models" / FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(highs, "BATCH", 16)  # as many steps from few frames
        highs.learn(originals, equal, tones[0].signal, path)
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
    assert Originals(tones[0], 8000, channels=1).audio(first).shape == (5, 4 * 8000, 1)


def test_bands_cover_what_is_not_heard(tones):
    """Each bin of a song above half the study rate lies in one band, the powers add up to all."""
    signal = tones[0].signal
    sound = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    for rate in (16000, 44100, 96000):
        member = members(rate, signal)
        assert (member.sum(axis=0) == 1).all()
        assert ((member.sum(axis=1) > 0).sum() == ABOVE) == (rate >= RATE)
        spectrum = spectrum_above(sound, rate, signal, 20)
        assert spectrum.shape == (member.shape[1], 20)
        found = levels_above(spectrum, rate, signal)
        # White noise: a bin's power grows with its window, which is what is scaled away twice.
        assert np.ptp(np.log10(found[member.any(axis=1)].mean(axis=1))) < 0.5
    assert members(8192, signal).shape == (ABOVE, 0)
    assert list(band_of(np.array([100, 4097, 22049, 40000]), signal)) == [
        0,
        0,
        ABOVE - 1,
        ABOVE - 1,
    ]


def test_what_is_told_does_not_depend_on_the_level(rng):
    magnitude = rng.random((513, 6))
    above = rng.random((ABOVE, 6))
    told = features(equal(magnitude), magnitude, above)
    assert told.shape == (6, INPUTS)
    np.testing.assert_allclose(
        features(equal(magnitude), 9 * magnitude, 81 * above), told, atol=1e-6
    )
    assert (features(equal(magnitude), 0 * magnitude, 0 * above) == -1).all()


def test_the_highs_go_to_whom_they_belong(tones, originals, learned):
    """Bursts of noise to the drums, steady overtones not; in a song that taught nothing."""
    signal = tones[0].signal
    (source,) = originals.split("valid")
    magnitude = np.abs(stft(decode(source, signal.sample_rate)[0], signal))
    mixture, *stems = (
        spectrum_above(sound, RATE, signal, magnitude.shape[1])
        for sound in originals.audio(source).mean(axis=-1)
    )
    shares = Highs(learned)(equal(magnitude), magnitude, levels_above(mixture, RATE, signal))
    assert shares.shape == (len(INSTRUMENTS), ABOVE, magnitude.shape[1])
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    masks = np.einsum("ibt,bf->ift", shares, members(RATE, signal))
    found, unknowing = (
        (np.abs(stems - mask * mixture) ** 2).sum(axis=(1, 2)) for mask in (masks, 0.25)
    )
    assert (found < [0.01, 1, 0.5, 0.01] * unknowing).all()
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
    content = bytearray(learned.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:start]
    else:
        content[start] ^= data.draw(st.integers(1, 255))
    path = tmp_path / FILE
    path.write_bytes(content)
    try:
        found = Highs(path)
    except ConfigError as error:
        assert FILE in str(error) and "delete it" in str(error)
    else:  # a byte that no reader looks at
        magnitude = np.ones((513, 3))
        assert np.isfinite(found(equal(magnitude), magnitude, np.ones((ABOVE, 3)))).all()


def test_weights_of_another_shape_are_refused(learned, tmp_path):
    with np.load(learned) as file:
        weights = [file[name] for name in file.files]
    path = tmp_path / FILE
    for some in (weights[:4], weights[::-1], [*weights[:5], weights[5][1:]], []):
        np.savez(path, *some)
        with pytest.raises(ConfigError, match="damaged"):
            Highs(path)
    np.savez(path, np.array([print], dtype=object))
    with pytest.raises(ConfigError, match="damaged"):
        Highs(path)


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
