"""Songs of any kind through the command and the function: exact, seamless, never half-written."""

import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, changed, run_record, untrained_run

import cunet_lib
from cunet_lib import cli
from cunet_lib.core import hardware
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.evaluation.metrics import SCORE_COLUMNS
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import vector
from cunet_lib.models.weights import save_half
from cunet_lib.report import card as cards
from cunet_lib.separation import catalog, songs, stream
from cunet_lib.signal import audio
from cunet_lib.signal.audio import ensure_ffmpeg
from cunet_lib.signal.spectral import istft, stft
from cunet_lib.signal.writing import FORMATS, Output

SETTINGS = load_profile("smoke", ["title=tones of a test"])
SHAPE = {"shape": SETTINGS.patch_shape, "filters": 2, "blocks": 4}
STUDY_RATE = SETTINGS.signal.sample_rate


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with one C-U-Net and one dedicated U-Net."""
    root = tmp_path_factory.mktemp("results").resolve()
    for model in ("dense_simple", "unet_vocals"):
        untrained_run(SETTINGS, model, root / "demo" / "runs" / f"{model}-seed0")
    patch = pytest.MonkeyPatch()
    patch.setenv("CUNET_RESULTS", str(root))
    patch.setattr(catalog, "ROOT", root / "project")  # in which no model ships
    yield root
    patch.undo()


@pytest.fixture(scope="module")
def separator(results):
    # Of these numbers, bfloat16 would keep two or three digits.
    loaded = songs.SongSeparator(catalog.find("dense_simple"))
    loaded.precision = "float32"
    assert loaded.separator.name == loaded.model == "dense_simple"
    return loaded


@pytest.fixture
def fast(separator, monkeypatch):
    """The command without loading a model each time."""
    ready = lambda self, *_, **options: self.__dict__.update(separator.__dict__)  # noqa: E731
    monkeypatch.setattr(songs.SongSeparator, "__init__", ready)
    return separator


def opened(separator, **changes):
    """The same, its network let everything through."""
    other = songs.SongSeparator.__new__(songs.SongSeparator)
    other.__dict__.update(separator.__dict__, **changes)
    other.separator = Open(separator.separator)
    return other


class Open:
    def __init__(self, inner):
        self.frames, self.separate, self.weighs = inner.frames, inner.separate, inner.weighs
        self.hear = inner.hear

    def masks(self, heard, conditions=None):
        return np.ones((len(conditions), *heard.shape[1:]), np.float32)


def music(rng, seconds, rate, channels):
    """Noise and tones, different in each channel."""
    time = np.arange(max(1, round(seconds * rate)))[:, None] / rate
    pitch = 200 * (1 + np.arange(channels))
    noise = rng.normal(size=(len(time), channels))
    return (0.2 * np.sin(2 * np.pi * pitch * time) + 0.05 * noise).astype(np.float32)


def written(path, *shape, scale=1, **options):
    """Music as a file of 32 bits, if no options say otherwise; its samples."""
    song = np.float32(scale) * music(np.random.default_rng(7), *shape)
    soundfile.write(path, song, shape[1], **{"subtype": "FLOAT", **options})
    return song


@pytest.fixture
def one_second(tmp_path):
    """A file with a second of music."""
    written(tmp_path / "a.wav", 1, 16000, 1)
    return tmp_path / "a.wav"


def part(song, rate, model, name="vocals"):
    """One instrument of an array."""
    return songs.separate(song, rate, instruments=[name], model=model)[name]


def ffmpeg(*arguments):
    subprocess.run([ensure_ffmpeg(), "-nostdin", "-v", "error", "-y", *arguments], check=True)


# ----------------------------------------------------------------------------------------- sound


def test_at_the_studys_rate_it_is_the_studys_separation(separator, rng):
    """Shares of all instruments, combined and faded; one alone is the network's own answer."""
    song = music(rng, 7.3, STUDY_RATE, 1)[:, 0]
    spectrogram = stft(song, SETTINGS.signal)
    shares = separator.separator.shares(separator.separator.hear(song - song.mean()))
    some = {"vocals+drums": {"vocals": 1.0, "drums": 1.0}, "vocals=0.5": {"vocals": 0.5}}
    for asked, levels in (
        (None, {name: {name: 1.0} for name in INSTRUMENTS}),
        (list(some), some),
    ):
        parts = cunet_lib.separate(song, STUDY_RATE, model=separator, instruments=asked)
        assert list(parts) == list(levels)
        for name, level in levels.items():
            mask = np.tensordot(vector(level), shares, 1)
            expected = istft(mask * spectrogram, SETTINGS.signal, len(song))
            np.testing.assert_allclose(parts[name], expected, atol=1e-5)
    expected = separator.separator(song - song.mean(), vector({"bass": 1.0})[None])[0]
    np.testing.assert_allclose(part(song, STUDY_RATE, separator, "bass"), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"),
    [(0, 192000, 6), (0.01, 44100, 2), (3.1, 44100, 2), (1.5, 8000, 1), (1.2, 192000, 6)],
)
def test_open_masks_give_the_song_back(separator, rng, seconds, rate, channels):
    song = music(rng, seconds, rate, channels)
    estimate = part(song, rate, opened(separator))
    assert estimate.shape == song.shape and estimate.dtype == np.float32
    np.testing.assert_allclose(estimate, song, atol=1e-5)


@pytest.mark.parametrize("asked", [{}, {"two_stems": "drums"}, {"instruments": ["bass", "other"]}])
def test_parts_and_residual_add_up_to_the_song(separator, rng, asked):
    """All instruments, and two stems, do so by themselves."""
    song = music(rng, 4, 44100, 2)
    parts = songs.separate(song, 44100, model=separator, residual=True, **asked)
    np.testing.assert_allclose(sum(parts.values()), song, atol=1e-5)
    left = np.abs(parts.pop("residual")).max()
    assert left > 1e-3 if "instruments" in asked else left < 1e-5
    assert all(np.abs(part).max() > 1e-3 for part in parts.values())


def test_accompaniment_is_all_but_one(separator, rng):
    song = music(rng, 2, STUDY_RATE, 1)[:, 0]
    both = songs.separate(song, STUDY_RATE, model=separator, two_stems="drums")
    assert list(both) == ["drums", "accompaniment"]
    named = songs.separate(
        song, STUDY_RATE, model=separator, instruments=["accompaniment", "bass+drums+other"]
    )
    np.testing.assert_array_equal(*named.values())
    with pytest.raises(ConfigError, match="either"):
        songs.requests(["bass"], two_stems="vocals")
    with pytest.raises(ConfigError, match="Unknown instrument"):
        songs.requests(two_stems="guitar")


@pytest.mark.parametrize("trouble", ["inverted", "offset", "before"])
def test_what_the_network_hears_is_the_music(separator, rng, trouble):
    """A right channel that is inverted, a constant offset, something 40 dB louder before."""
    rate, seconds = 16000, 40
    mono = music(rng, seconds, rate, 1)
    song = np.concatenate([mono, mono], axis=1)
    change = {
        "inverted": lambda: song * np.float32([1, -1]),
        "offset": lambda: song + np.float32(0.3),
        "before": lambda: np.concatenate([100 * song, song]),
    }[trouble]
    plain, heard = (part(each, rate, separator)[-30 * rate :] for each in (song, change()))
    heard = heard * np.float32([1, -1]) if trouble == "inverted" else heard
    # The offset itself, below what one hears, is left where it is.
    error, power = (
        (np.abs(np.fft.rfft(each[5 * rate : -rate], axis=0)[50 * 24 :]) ** 2).sum()
        for each in (heard - plain, plain)
    )
    assert error < 1e-2 * power


def test_neither_a_channel_s_level_nor_the_song_s_changes_the_masks(separator, rng):
    left = music(rng, 3, 22050, 1)
    song = np.concatenate([left, 0.25 * left], axis=1)
    loud, quiet = (part(gain * song, 22050, separator) for gain in np.float32([1, 1e-3]))
    np.testing.assert_allclose(loud[:, 1], 0.25 * loud[:, 0], atol=1e-6)
    np.testing.assert_allclose(quiet, 1e-3 * loud, atol=1e-8)


@pytest.mark.parametrize("kind", ["tone", "noise"])
def test_stretches_leave_no_seams(separator, rng, monkeypatch, kind):
    """Of music that goes on as it began, 50 dB below it at most."""
    rate, seconds = 16000, 50
    time = np.arange(rate) / rate
    second = 0.3 * np.sin(2 * np.pi * 440 * time)  # the loudest, so that stretches scale alike
    if kind == "noise":
        second = second + 0.02 * rng.normal(size=rate)
    song = np.tile(second.astype(np.float32), seconds)
    monkeypatch.setattr(stream, "STRETCH_SECONDS", seconds)
    whole = part(song, rate, separator)
    monkeypatch.setattr(stream, "STRETCH_SECONDS", 1)
    monkeypatch.setattr(stream, "BLOCK_VALUES", 20000)
    pieces = part(song, rate, separator)
    assert ((pieces - whole) ** 2).sum() < 1e-5 * (whole**2).sum()


def test_highs_take_the_mean_mask_of_the_top_octave_or_are_cut(separator, rng):
    rate = 32000
    song = music(rng, 4, rate, 1)[:, 0]
    edge = STUDY_RATE / 2
    frequencies = np.fft.rfftfreq(len(song), 1 / rate)

    def power(sound):
        return (np.abs(np.fft.rfft(sound))[frequencies > 1.1 * edge] ** 2).sum()

    assert 0.001 < power(part(song, rate, separator)) / power(song) < 1
    assert power(part(song, rate, opened(separator, highs="cut"))) < 1e-6 * power(song)


def test_memory_does_not_grow_with_the_song(separator):
    def song(seconds):
        rng = np.random.default_rng(0)
        second = rng.normal(size=(16000, 1)).astype(np.float32)
        return stream.Song("long", 16000, lambda: (second for _ in range(seconds)))

    peaks = []
    for seconds in (60, 60, 300):  # the first fills caches
        tracemalloc.start()
        _, _, parts = opened(separator).stream(song(seconds), [vector({"vocals": 1.0})])
        assert sum(len(mixture) for mixture, _ in parts) == seconds * 16000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


def test_the_last_model_stays_and_a_forked_process_is_told(results, rng, monkeypatch):
    found = catalog.find("dense_simple")
    first = songs.ready("dense_simple", highs="extend", overlap=0.25)
    assert songs.ready(found.path, highs="extend", overlap=0.25) is first
    assert songs.ready("dense_simple", highs="cut", overlap=0.25) is not first
    song = music(rng, 1, 8000, 1)
    monkeypatch.setattr(stream.os, "getpid", lambda: -1)
    for call in (
        lambda: songs.separate(song, 8000, model=first),
        lambda: stream.SongSeparator(found).separator,
    ):
        with pytest.raises(ConfigError, match="spawn"):
            call()


# -------------------------------------------------------------------------------------- requests


def test_dedicated_unet_gives_its_instrument_only(results, rng):
    song = music(rng, 1, 16000, 1)[:, 0]
    assert list(cunet_lib.separate(song, 16000, model="unet_vocals")) == ["vocals"]
    with pytest.raises(ConfigError, match="vocals alone"):
        cunet_lib.separate(song, 16000, model="unet_vocals", instruments=["bass"])


@pytest.mark.parametrize(
    ("array", "rate"),
    [
        (np.zeros(10, np.float32), None),
        (np.zeros(10, np.float32), 10),
        (np.zeros(10, int), 8000),
        (np.zeros((2, 2, 2)), 8000),
        (np.zeros((2, 2000)), 8000),  # channels first
        (np.zeros(0), 8000),
        (np.zeros((100, 0)), 8000),
        (np.full(9000, np.nan), 8000),
    ],
)
def test_wrong_arrays_are_refused(separator, array, rate):
    with pytest.raises(ConfigError):
        songs.separate(array, rate, model=separator)


def test_names_that_no_file_can_have_are_refused(separator):
    with pytest.raises(ConfigError, match=r"a{300}"):
        songs.separate("a" * 300, model=separator)
    with pytest.raises(ConfigError, match="No model '~nobody-here/model'"):
        songs.separate("a.wav", model="~nobody-here/model")


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["plain.wav", "-dash.wav"])
def test_files_keep_rate_channels_length_and_sum(fast, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    song = written(f"./{name}", 2.345, 22050, 2)
    status = cli.main(["separate", "--residual", "--out", "parts", "--", name])
    told = capsys.readouterr()
    assert status == 0, told.err
    assert "tones of a test" in told.out and "times real time" in told.out
    (folder,) = Path("parts").iterdir()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == sorted(f"{n}.wav" for n in [*INSTRUMENTS, "residual"])
    read = [soundfile.read(file) for file in files]
    assert {rate for _, rate in read} == {22050}
    np.testing.assert_allclose(sum(part for part, _ in read), song, atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "subtype", "shape", "format"),
    [
        *(("wav", "PCM_16", (88200, 44100, 2), format) for format in FORMATS),
        ("wav", "PCM_U8", (11025, 11025, 1), "flac"),
        ("flac", "PCM_24", (96000, 192000, 6), "flac"),
    ],
)
def test_every_format_is_written(fast, tmp_path, suffix, subtype, shape, format):
    frames, rate, channels = shape
    song = tmp_path / f"a.{suffix}"
    written(song, frames / rate, rate, channels, subtype=subtype)
    file = songs.separate(song, model=fast, out=tmp_path / "out", format=format)["bass"]
    info = soundfile.info(file)
    assert (info.samplerate, info.channels) == (rate, channels)
    assert format in ("mp3", "ogg") or info.frames == frames


def test_a_bad_file_is_told_in_a_sentence_and_stops_no_other(fast, one_second, tmp_path, capfd):
    path, out = tmp_path / "bad.mp3", tmp_path / "out"
    path.write_bytes(b"La la la")
    assert cli.main(["separate", str(path), str(one_second), "--out", str(out)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert path.name in line and ";" in line and line.endswith(".")
    assert [folder.name for folder in out.iterdir()] == ["a"]


def test_existing_files_stay_unless_forced(fast, one_second, tmp_path, capsys):
    kept = tmp_path / "out" / "a" / "bass.wav"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    command = ["separate", str(one_second), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert kept.read_text() == "mine" and len(list(kept.parent.iterdir())) == 1
    assert cli.main([*command, "--force"]) == 0
    assert soundfile.info(kept).frames == 16000


@pytest.mark.parametrize(
    ("way", "out", "kind"),
    [
        ("out", "out", "file and no folder"),
        ("out", "out/deep/er", "file and no folder"),
        ("out/a", "out", "file and no folder"),
        ("out/a/vocals.wav", "out", "folder; move it away"),
    ],
)
def test_what_is_in_the_way_is_refused_before_anything_is_written(
    results, one_second, tmp_path, capsys, way, out, kind
):
    way = tmp_path / way
    way.parent.mkdir(parents=True, exist_ok=True)
    way.mkdir() if kind.startswith("folder") else way.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["separate", str(one_second), "--out", str(tmp_path / out), "--force"]) == 1
    assert f"{way} is a {kind}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_halfway_leaves_the_old_files(fast, one_second, tmp_path, monkeypatch, capsys):
    command = ["separate", str(one_second), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out" / "a").iterdir()}
    real = audio.AudioFile.blocks
    passes = []

    def shorter(self, *excerpt):
        passes.append(self)
        blocks = real(self)
        return blocks if len(passes) == 1 else iter([next(blocks)[:9000]])

    monkeypatch.setattr(audio.AudioFile, "blocks", shorter)
    assert cli.main([*command, "--force"]) == 1
    assert "changed while it was read" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "out" / "a").iterdir()} == before
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["a"]


def test_sums_and_levels_are_files_of_their_own(fast, one_second, tmp_path):
    command = ["separate", str(one_second), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--instruments", "drums+bass", "vocals=0.5"]) == 0
    files = {file.name for file in (tmp_path / "out" / "a").iterdir()}
    assert files == {"drums+bass.wav", "vocals=0.5.wav"}


def test_a_name_that_ends_in_two_suffixes_is_no_other_song_s(tmp_path):
    for name in ("x.mp3", "x.wav", "x.mp3.wav"):
        (tmp_path / name).touch()
    names, _ = songs.find_songs([tmp_path], tmp_path / "out")
    assert len(names) == len({*names.values()}) == 3


def test_songs_of_one_name_do_not_meet(fast, tmp_path):
    for name in ("a.wav", "a.flac", "b/a.wav", "c/d/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / name, 0.2, 16000, 1, subtype="PCM_16")
    out = tmp_path / "out"

    def names(*given):
        found, _ = songs.find_songs([tmp_path / each for each in given], out)
        return list(map(str, found.values()))

    assert names("a.wav", "c/d/a.wav") == [f"{tmp_path.name}/a.wav", "d/a.wav"]
    assert names("a.wav", "a.flac") == ["a.wav", "a.flac"]
    (tmp_path / "e" / "d").mkdir(parents=True)
    with pytest.raises(ConfigError, match="one folder"):
        names("c/d/a.wav", "e/d/a.wav")
    assert set(names(".")) == {"a.flac", "a.wav", "b/a", "c/d/a"}
    assert cli.main(["separate", str(tmp_path), "--out", str(out), "--instruments", "bass"]) == 0
    found = {str(path.relative_to(out)) for path in out.rglob("bass.wav")}
    assert found == {f"{name}/bass.wav" for name in ("a.wav", "a.flac", "b/a", "c/d/a")}


def test_a_folder_goes_on_where_it_ended(fast, tmp_path, capsys):
    for name in ("a.wav", "b.wav", ".hidden.wav", "@eaDir/a.wav", "text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, 0.2, 16000, 1, format="WAV")
    command = ["separate", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]
    command += ["--instruments", "bass"]
    assert cli.main(command) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(each["song"]).name for each in told] == ["a.wav", "b.wav"]
    assert told[0]["files"] == {"bass": str(tmp_path / "out" / "a" / "bass.wav")}
    assert told[0]["seconds"] == 0.2 and told[0]["took"] > 0
    (tmp_path / "out" / "b" / "bass.wav").unlink()
    assert cli.main(command) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["took"] > 0 for each in told] == [False, True]
    (tmp_path / "none").mkdir()
    assert cli.main(["separate", str(tmp_path / "none")]) == 1
    assert "name the audio files in it" in capsys.readouterr().err


def test_what_is_in_the_way_is_told_before_the_work(fast, tmp_path, capsys, monkeypatch):
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for path in paths:
        written(path, 0.2, 16000, 1)
    command = ["separate", *paths, "--out", str(tmp_path / "out")]
    assert cli.main([*command[:1], paths[1], *command[3:], "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    order, real = [], songs.progress
    monkeypatch.setattr(songs, "progress", lambda *a: order.append("work") or real(*a))
    monkeypatch.setattr(cli, "_complain", order.append)
    assert cli.main(command) == 1
    assert "b/bass.wav exists" in order[0] and order[1:] == ["work"]


def test_an_excerpt_of_standard_input(fast, tmp_path, monkeypatch):
    song = written(tmp_path / "a.wav", 3, 16000, 1)
    ffmpeg("-i", str(tmp_path / "a.wav"), str(tmp_path / "a.wv"))
    for name in ("a.wav", "a.wv"):
        command = ["separate", "-", "--start", "1.5", "--length", "0.5", "--out", str(tmp_path)]
        with (tmp_path / name).open("rb") as stdin:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
            assert cli.main([*command, "--two-stems", "bass", "--force"]) == 0
        parts = [
            soundfile.read(tmp_path / "stdin" / f"{n}.wav")[0] for n in ("bass", "accompaniment")
        ]
        np.testing.assert_allclose(sum(parts), song[24000:32000, 0], atol=1e-4)
    with pytest.raises(ConfigError, match="from 9 s holds no samples"):
        songs.separate(tmp_path / "a.wav", model=fast, start=9)
    for excerpt in ({"length": 0}, {"length": float("inf")}, {"start": 1e308}):
        with pytest.raises(ConfigError, match="An excerpt starts"):
            songs.separate(tmp_path / "a.wav", model=fast, **excerpt)


def test_clipping_is_told(fast, tmp_path, capsys):
    written(tmp_path / "a.wav", 1, 16000, 1, scale=20)
    command = ["separate", str(tmp_path / "a.wav"), "--out", str(tmp_path / "out"), "--residual"]
    assert cli.main([*command, "--format", "flac"]) == 0
    assert "clipped" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "clipped" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["separate"],
        ["separate", "--instruments", "vocals", "a.wav"],
        ["separate", "a.wav", "--format", "tape"],
        ["separate", "a.wav", "--format", "mp3", "--bits", "16"],
        ["separate", "a.wav", "--format", "flac", "--bits", "32"],
        ["separate", "a.wav", "--bitrate", "192k"],
        ["separate", "a.wav", "--format", "ogg", "--bitrate", "loud"],
        ["separate", "a.wav", "--overlap", "1"],
        ["separate", "a.wav", "--model", "nothing"],
    ],
)
def test_wrong_usage_is_told_in_a_sentence(results, arguments, capsys):
    assert cli.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ----------------------------------------------------------------------------- models and cards


def test_models_are_found_by_name_and_path(results):
    path = results / "demo" / "runs" / "dense_simple-seed0" / "model.keras"
    for name in ("dense_simple", "demo/dense_simple-seed0", str(path), str(path.parent)):
        assert catalog.find(name).path == path
    assert catalog.find().path == path
    with pytest.raises(ConfigError, match="cunet models"):
        catalog.find("cnn_simple")


def test_shipped_models_come_first_and_smoke_last(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path))
    monkeypatch.setattr(catalog, "ROOT", tmp_path / "project")
    with pytest.raises(ConfigError, match="no trained model"):
        catalog.find()
    # Each before those above it; of the project, only what ships.
    for place in (
        "project/results/demo/runs/cnn_complex-seed0/model.keras",
        "smoke/models/cnn_complex.keras",
        "musdb18/runs/cnn_complex-seed0/model.keras",
        "demo/runs/cnn_complex-seed0/model.keras",
        "musdb18/models/cnn_complex.keras",
        "project/results/demo/models/cnn_complex.keras",
        "demo/models/cnn_complex.keras",
        "project/results/study/models/cnn_complex.keras",
        "project/results/beyond/models/cnn_complex.keras",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch()
        if not place.startswith("project/results/demo/runs"):
            assert catalog.find("cnn_complex").path == path
    assert catalog.find().name == "beyond/cnn_complex"
    assert len(catalog.table(cards.scores_of).splitlines()) == 1 + 7 + 2
    card = cards.card(run_record(load_profile("demo"), "cnn_complex"), half=True)
    (path.parent / catalog.CARD).write_text(card)
    assert "no real music" in catalog.find().trained_on
    assert "unknown data" in catalog.find("musdb18/cnn_complex").trained_on


def test_model_of_unknown_settings_is_refused(tmp_path, monkeypatch):
    size = {**SHAPE, "shape": (256, 64, 1)}
    models.build("dense_simple", **size).save(tmp_path / "small.keras")
    with pytest.raises(ConfigError, match=r"run\.json"):
        _ = songs.SongSeparator(catalog.find(str(tmp_path / "small.keras"))).separator


def test_patches_overlap_even_if_the_study_lays_them_end_to_end(tmp_path):
    joined = changed(SETTINGS, "separate", overlap=0.0)
    found = catalog.find(str(untrained_run(joined, "dense_simple", tmp_path / "run")))
    assert cli._parser().parse_args(["separate"]).overlap == songs.OVERLAP
    for overlap in (songs.OVERLAP, 0.75):
        separator = songs.SongSeparator(found, overlap=overlap).separator
        assert separator.frames == stream.PATCHES * SETTINGS.model.patch_frames
        shared = separator.frames * separator.separate.overlap
        assert shared == overlap * SETTINGS.model.patch_frames > 0
    with pytest.raises(ConfigError, match="below 1"):
        songs.SongSeparator(found, overlap=1)


@pytest.mark.skipif(not hardware.computes_bfloat16(), reason="here songs are separated in float32")
@pytest.mark.parametrize("name", ["demo", "study", "beyond"])
def test_bfloat16_changes_the_shipped_models_parts_of_real_music_by_little(name):
    mixture = real_excerpt(STUDY_RATE)[0]
    (path,) = (ROOT / "results" / name / "models").glob("*.keras")
    found = catalog.describe(path)
    rounded, exact = songs.SongSeparator(found), songs.SongSeparator(found)
    rounded.precision, exact.precision = "mixed_bfloat16", "float32"
    rounded, exact = (songs.separate(mixture, STUDY_RATE, model=each) for each in (rounded, exact))
    for name in INSTRUMENTS:
        error = ((rounded[name] - exact[name]) ** 2).sum()
        assert 0 < error <= 1e-4 * (exact[name] ** 2).sum()


@pytest.mark.parametrize(
    ("able", "gpu", "expected"),
    [(True, [], "mixed_bfloat16"), (False, [], "float32"), (True, ["a GPU"], "float32")],
)
def test_processors_that_compute_with_bfloat16_separate_with_it(
    tmp_path, monkeypatch, able, gpu, expected
):
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda: able)
    monkeypatch.setattr(hardware, "gpus", lambda: gpu)
    save_half(models.build("cnn_complex", **SHAPE, start="he"), tmp_path / "half.keras")
    separator = songs.SongSeparator(catalog.find(str(tmp_path / "half.keras")))
    assert separator.precision == expected
    assert separator.separator._mask.output.dtype == "float32"


def test_card_says_what_one_must_know(tmp_path):
    record = run_record(load_profile("demo"), "cnn_complex", seed=3, commit="abc")
    text = cards.write_card(tmp_path, record, scores={"vocals": (5.123, 14)}).read_text()
    for part in ("rendered from scratch", "5.12", "BSS Eval v4", "not comparable", "no real music"):
        assert part in text
    assert "## Licence" in text and "| seed | 3 |" in text
    assert str(ROOT) not in text
    assert catalog.read_card(tmp_path / catalog.CARD)["settings"]["signal"]["hop"] == 256
    assert "Not known yet" in cards.card(record)
    assert "licence of the code, MIT" in text and "terms of MUSDB18" not in text
    record["settings"]["data"]["source"] = "musdb18"
    assert "The terms of MUSDB18, above, go with them." in cards.card(record)
    record["settings"]["data"]["source"] = "folder"
    assert "MUSDB18" not in cards.card(record) and "the user's own" in cards.card(record)


def test_a_block_that_is_no_yaml_makes_no_card(tmp_path):
    (tmp_path / catalog.CARD).write_text("---\ncreated: !!timestamp x\n---\n")
    assert catalog.read_card(tmp_path / catalog.CARD) is None


def test_licence_is_the_one_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'license = "{cards.LICENCE}"\nlicense-files = ["LICENSE"]\n' in project
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith(f"{cards.LICENCE} License")


def test_cards_get_their_scores_and_stand_beside_the_shipped_model(roots, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "ROOT", roots / "project")  # in which no model ships
    paths = SETTINGS.paths
    shipped = SETTINGS.shipped
    for name in (f"{shipped}-seed0", "another"):
        untrained_run(SETTINGS, shipped, paths.runs / name)
    paths.models.mkdir()
    (paths.models / f"{shipped}.keras").touch()
    paths.scores.mkdir()
    rows = [",".join(SCORE_COLUMNS)]
    rows += [f"{shipped},0,{n},bass,SDR,BSS Eval v4,median over frames,{n},9,0" for n in (1, 2, 6)]
    rows += [f"{shipped},0,1,bass,SDR,BSS Eval v3,whole track,99,1,0"]
    (paths.scores / f"{shipped}-seed0.csv").write_text("\n".join(rows) + "\n")
    cards.write_cards(SETTINGS)
    assert "| bass | 2.00 | 3 |" in (paths.models / catalog.CARD).read_text()
    assert "| bass | 2.00 | 3 |" in (paths.run(shipped, 0) / catalog.CARD).read_text()
    assert "Not known yet" in (paths.runs / "another" / catalog.CARD).read_text()
    # A model separates as its scores were made, however long ago it was trained.
    heard = {"separate": SETTINGS.separate.model_copy(update={"pitches": (0.9,)})}
    cards.write_cards(SETTINGS.model_copy(update=heard))
    assert catalog.find(f"smoke/{shipped}").separate.pitches == (0.9,)
    found = catalog.find(f"smoke/{shipped}")
    assert cards.scores_of(found) == {"bass": (2.0, 3)} and found.seed == 0
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[1].split()[:3] == [f"smoke/{shipped}", "2.0", "-"]


# ------------------------------------------------------------------------------- containers


def tones(channels, rate=48000):
    """Two seconds with a pitch of its own in each channel."""
    time = np.arange(2 * rate) / rate
    pitches = np.array(PITCHES[:channels])
    return (0.1 * np.sin(2 * np.pi * pitches * time[:, None])).astype(np.float32)


PITCHES = (200, 350, 500, 80, 650, 800)  # the fourth is for low frequencies alone


@pytest.mark.parametrize("format", ["wav", "flac", "aiff", "ogg", "opus", "m4a"])
def test_channels_keep_their_places(tmp_path, format):
    """5.1 in and out of every format that holds it; in WAV and AIFF bit for bit."""
    song, path = tones(6), tmp_path / f"a.{format}"
    output = Output(format if format in FORMATS else "wav", 48000, 6, "5.1")
    with output.writer(tmp_path / f"w.{output.format}") as write:
        write(song)
    if format not in FORMATS:
        ffmpeg("-i", str(tmp_path / "w.wav"), str(path))
    else:
        (tmp_path / f"w.{format}").rename(path)
    file = audio.open_audio(path)
    read = np.concatenate(list(file.blocks()))
    assert file.layout.startswith("5.1")
    spectrum = np.abs(np.fft.rfft(read[: len(song)], axis=0))
    assert tuple(spectrum.argmax(axis=0) * 48000 / len(song)) == pytest.approx(PITCHES, abs=2)
    if format in ("wav", "aiff"):
        np.testing.assert_array_equal(read, song)


def test_a_chain_is_read_to_its_end_or_refused(tmp_path):
    for seconds, name in ((1, "a"), (2, "b")):
        soundfile.write(tmp_path / f"{name}.wav", tones(1)[: seconds * 24000], 24000)
    for kind in ("ogg", "mp3", "flac", "wav", "aiff", "m4a"):
        for name in "ab" if kind != "wav" else "":
            ffmpeg("-i", str(tmp_path / f"{name}.wav"), str(tmp_path / f"{name}.{kind}"))
        both = tmp_path / f"ab.{kind}"
        both.write_bytes(b"".join((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab"))
        if kind in ("ogg", "mp3"):
            read = sum(map(len, audio.open_audio(both).blocks()))
            assert read == pytest.approx(3 * 24000, abs=3000)
        else:
            with pytest.raises(ConfigError, match="several files"):
                audio.open_audio(both)


@pytest.mark.parametrize("sizes", [(0, 0), (0xFFFFFFFF,) * 2, (0x7FFFF024, 0x7FFFF000)])
def test_wav_of_unknown_length_goes_to_its_end(tmp_path, sizes):
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(2), 48000, subtype="FLOAT")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8], content[place : place + 4] = (size.to_bytes(4, "little") for size in sizes)
    path.write_bytes(content)
    np.testing.assert_array_equal(np.concatenate(list(audio.open_audio(path).blocks())), tones(2))


@pytest.mark.parametrize("kind", ["aiff", "mp3", "wv", "mka"])
def test_what_is_cut_short_is_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(tmp_path / "a.wav", np.tile(tones(1), (3, 1)), 48000)
    ffmpeg("-i", str(tmp_path / "a.wav"), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cut short"):
        list(audio.open_audio(path).blocks())


def test_limits_are_known_before_the_work(fast, tmp_path):
    with pytest.raises(ConfigError, match="aiff holds 4"):
        Output("aiff", 44100, 2).check(1 << 29, tmp_path)
    for output in (Output("mp3", 192000, 2), Output("mp3", 44100, 6), Output("flac", 44100, 9)):
        with pytest.raises(ConfigError, match="--format wav"):
            output.check(9, tmp_path)
    assert Output("mp3", 44100, 2).size(100) < Output("flac", 44100, 2).size(100)
    assert not list(tmp_path.iterdir())
    written(tmp_path / "a.wav", 0.1, 192000, 6)
    with pytest.raises(ConfigError, match="--format wav"):
        songs.separate(tmp_path / "a.wav", model=fast, out=tmp_path / "out", format="mp3")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_tags_and_cover_are_kept(tmp_path, format):
    soundfile.write(tmp_path / "a.wav", tones(2), 48000)
    picture = ["-f", "lavfi", "-i", "color=size=16x16", "-frames:v", "1"]
    ffmpeg(*picture, str(tmp_path / "cover.png"))
    cover = ["-i", str(tmp_path / "cover.png"), "-map", "0:a", "-map", "1:v", "-c:v", "copy"]
    cover += ["-disposition:v", "attached_pic", "-metadata", "title=A song"]
    ffmpeg("-i", str(tmp_path / "a.wav"), *cover, str(tmp_path / "a.m4a"))
    output = Output(format).like(audio.open_audio(tmp_path / "a.m4a")).check(9, tmp_path)
    with output.writer(tmp_path / f"b.{format}") as write:
        write(tones(2))
    found = audio.probe(tmp_path / f"b.{format}")
    tags = found["format"].get("tags", {}) | found["streams"][0].get("tags", {})
    assert {name.lower(): text for name, text in tags.items()}["title"] == "A song"
    assert "major_brand" not in tags
    pictures = sum(each["codec_type"] == "video" for each in found["streams"])
    assert pictures == FORMATS[format].cover


def test_bits_and_bit_rate(fast, tmp_path):
    written(tmp_path / "a.wav", 2, 44100, 2)

    def bass(**options):
        given = {"instruments": ["bass"], "model": fast, "out": tmp_path, "force": True, **options}
        return songs.separate(tmp_path / "a.wav", **given)["bass"]

    for format, bits in (("wav", 16), ("wav", 24), ("flac", 16)):
        assert soundfile.info(bass(format=format, bits=bits)).subtype == f"PCM_{bits}"
    low, high = (bass(format="mp3", bitrate=rate).stat().st_size for rate in ("64k", "256k"))
    assert high > 3 * low


@pytest.mark.parametrize("place", [100, 16 + (1 << 20) - 3, 16 + (1 << 20), (1 << 21) + 50])
def test_a_second_file_behind_the_first_is_seen_wherever_it_begins(tmp_path, place):
    song = tmp_path / "a.wav"
    soundfile.write(song, np.zeros(1 << 20), 8192, subtype="PCM_16")
    content = bytearray(song.read_bytes() + b"\0" * 100)
    content[place : place + 8] = content[8:16]
    song.write_bytes(content)
    with pytest.raises(ConfigError, match="several files one behind the other"):
        audio.open_audio(song)
