"""Songs of any kind through the command and the function: exact, seamless, never half-written."""

import errno
import fcntl
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, changed, run_record, started

import cunet_lib
from cunet_lib import cli
from cunet_lib.core import hardware
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import vector
from cunet_lib.models.weights import save_half
from cunet_lib.report import card as cards
from cunet_lib.separation import catalog, songs, stream
from cunet_lib.signal import audio
from cunet_lib.signal.audio import ensure_ffmpeg
from cunet_lib.signal.spectral import istft, stft
from cunet_lib.signal.writing import FORMATS, Output

SETTINGS = load_profile("smoke")
SHAPE = {"shape": SETTINGS.patch_shape, "filters": 2, "blocks": 4}
STUDY_RATE = SETTINGS.signal.sample_rate


def trained(folder, model):
    """Save an untrained model with the record of a run."""
    folder.mkdir(parents=True)
    models.build(model, **SHAPE, start="he").save(folder / "model.keras")
    settings = SETTINGS.model_copy(update={"title": "tones of a test"})
    (folder / "run.json").write_text(json.dumps(run_record(settings, model)))
    return folder / "model.keras"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with one C-U-Net and one dedicated U-Net."""
    root = tmp_path_factory.mktemp("results").resolve()
    trained(root / "demo" / "runs" / "dense_simple-seed0", "dense_simple")
    trained(root / "demo" / "runs" / "unet_vocals-seed0", "unet_vocals")
    patch = pytest.MonkeyPatch()
    patch.setenv("CUNET_RESULTS", str(root))
    patch.setattr(catalog, "ROOT", root / "project")  # in which no model ships
    yield root
    patch.undo()


@pytest.fixture(scope="module")
def separator(results):
    # Of these numbers, bfloat16 would keep two or three digits.
    return songs.SongSeparator(catalog.find("dense_simple"), precision="float32")


@pytest.fixture
def fast(separator, monkeypatch):
    """The command without loading a model each time."""

    def ready(self, found, **options):
        self.__dict__.update(separator.__dict__)

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
        self.frames, self.separate = inner.frames, inner.separate

    def masks(self, magnitude, conditions=None):
        return np.ones((len(conditions), *magnitude.shape), np.float32)


def music(rng, seconds, rate, channels):
    """Noise and tones, different in each channel."""
    time = np.arange(max(1, round(seconds * rate)))[:, None] / rate
    pitch = 200 * (1 + np.arange(channels))
    noise = rng.normal(size=(len(time), channels))
    return (0.2 * np.sin(2 * np.pi * pitch * time) + 0.05 * noise).astype(np.float32)


def ffmpeg(*arguments):
    subprocess.run([ensure_ffmpeg(), "-nostdin", "-v", "error", "-y", *arguments], check=True)


# ----------------------------------------------------------------------------------------- sound


def mask_by_hand(separator, song, levels):
    """Estimates of a mono song at the study's rate by shares of all instruments."""
    spectrogram = stft(song, SETTINGS.signal)
    shares = separator.separator.shares(np.abs(stft(song - song.mean(), SETTINGS.signal)))
    masks = np.tensordot(levels, shares, 1)
    return np.stack([istft(mask * spectrogram, SETTINGS.signal, len(song)) for mask in masks])


def test_at_the_studys_rate_it_is_the_studys_separation(separator, rng):
    song = music(rng, 7.3, STUDY_RATE, 1)[:, 0]
    parts = cunet_lib.separate(song, STUDY_RATE, model=separator)
    assert list(parts) == list(INSTRUMENTS)
    expected = mask_by_hand(separator, song, np.eye(4))
    np.testing.assert_allclose(np.stack(list(parts.values())), expected, atol=1e-5)
    (alone,) = cunet_lib.separate(song, STUDY_RATE, instruments=["bass"], model=separator).values()
    expected = separator.separator(song - song.mean(), vector({"bass": 1.0})[None])[0]
    np.testing.assert_allclose(alone, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"),
    [(0, 192000, 6), (0.01, 44100, 2), (3.1, 44100, 2), (1.5, 8000, 1), (1.2, 192000, 6)],
)
def test_open_masks_give_the_song_back(separator, rng, seconds, rate, channels):
    song = music(rng, seconds, rate, channels)
    parts = songs.separate(song, rate, instruments=["vocals"], model=opened(separator))
    assert parts["vocals"].shape == song.shape and parts["vocals"].dtype == np.float32
    np.testing.assert_allclose(parts["vocals"], song, atol=1e-5)


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
    plain, heard = (
        songs.separate(each, rate, instruments=["vocals"], model=separator)["vocals"][-30 * rate :]
        for each in (song, change())
    )
    heard = heard * np.float32([1, -1]) if trouble == "inverted" else heard
    # The offset itself, below what one hears, is left where it is.
    error, power = (
        (np.abs(np.fft.rfft(each[5 * rate : -rate], axis=0)[50 * 24 :]) ** 2).sum()
        for each in (heard - plain, plain)
    )
    assert error < 1e-2 * power


def test_all_channels_get_the_same_mask(separator, rng):
    left = music(rng, 3, 22050, 1)
    song = np.concatenate([left, 0.25 * left], axis=1)
    part = songs.separate(song, 22050, instruments=["drums"], model=separator)["drums"]
    np.testing.assert_allclose(part[:, 1], 0.25 * part[:, 0], atol=1e-6)


def test_level_of_the_song_does_not_change_the_masks(separator, rng):
    song = music(rng, 3, 22050, 2)
    loud, quiet = (
        songs.separate(gain * song, 22050, instruments=["bass"], model=separator)["bass"]
        for gain in (np.float32(1), np.float32(1e-3))
    )
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
    whole = songs.separate(song, rate, instruments=["vocals"], model=separator)["vocals"]
    monkeypatch.setattr(stream, "STRETCH_SECONDS", 1)
    monkeypatch.setattr(stream, "BLOCK_VALUES", 20000)
    pieces = songs.separate(song, rate, instruments=["vocals"], model=separator)["vocals"]
    assert ((pieces - whole) ** 2).sum() < 1e-5 * (whole**2).sum()


def test_highs_take_the_mean_mask_of_the_top_octave_or_are_cut(separator, rng):
    rate = 32000
    song = music(rng, 4, rate, 1)[:, 0]
    edge = STUDY_RATE / 2
    frequencies = np.fft.rfftfreq(len(song), 1 / rate)

    def power(part):
        return (np.abs(np.fft.rfft(part))[frequencies > 1.1 * edge] ** 2).sum()

    extended = songs.separate(song, rate, instruments=["vocals"], model=separator)["vocals"]
    assert 0.001 < power(extended) / power(song) < 1
    closed = opened(separator, highs="cut")
    cut = songs.separate(song, rate, instruments=["vocals"], model=closed)["vocals"]
    assert power(cut) < 1e-6 * power(song)


def test_silence_stays_silence(separator):
    parts = songs.separate(np.zeros((30000, 2), np.float32), 44100, model=separator, residual=True)
    assert not any(part.any() for part in parts.values())


def test_memory_does_not_grow_with_the_song(separator):
    def song(seconds):
        rng = np.random.default_rng(0)
        second = rng.normal(size=(16000, 1)).astype(np.float32)
        return stream.Song("long", 16000, 1, lambda: (second for _ in range(seconds)))

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
    first = songs.ready(found, highs="extend", overlap=0.25)
    assert songs.ready(found, highs="extend", overlap=0.25) is first
    assert songs.ready(found, highs="cut", overlap=0.25) is not first
    song = music(rng, 1, 8000, 1)
    monkeypatch.setattr(stream.os, "getpid", lambda: -1)
    for call in (
        lambda: songs.separate(song, 8000, model=first),
        lambda: stream.SongSeparator(found),
    ):
        with pytest.raises(ConfigError, match="spawn"):
            call()


# -------------------------------------------------------------------------------------- requests


def test_instruments_combine_and_fade(separator, rng):
    song = music(rng, 3, STUDY_RATE, 1)[:, 0]
    parts = songs.separate(
        song, STUDY_RATE, instruments=["vocals+drums", "vocals=0.5"], model=separator
    )
    levels = [vector({"vocals": 1.0, "drums": 1.0}), vector({"vocals": 0.5})]
    assert list(parts) == ["vocals+drums", "vocals=0.5"]
    np.testing.assert_allclose(
        np.stack(list(parts.values())), mask_by_hand(separator, song, np.stack(levels)), atol=1e-5
    )


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
        (np.full(9000, np.nan), 8000),
    ],
)
def test_wrong_arrays_are_refused(separator, array, rate):
    with pytest.raises(ConfigError):
        songs.separate(array, rate, model=separator)


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["plain.wav", "two words 🎵 é.wav", "-dash.wav", ".hidden.wav"])
def test_files_keep_rate_channels_length_and_sum(fast, tmp_path, monkeypatch, rng, capsys, name):
    monkeypatch.chdir(tmp_path)
    song = music(rng, 2.345, 22050, 2)
    soundfile.write(f"./{name}", song, 22050, subtype="FLOAT")
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


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "flac"])
def test_any_format_is_read(fast, tmp_path, rng, suffix):
    soundfile.write(tmp_path / "a.wav", music(rng, 3, 48000, 2), 48000, subtype="FLOAT")
    ffmpeg("-i", str(tmp_path / "a.wav"), str(tmp_path / f"b.{suffix}"))
    files = songs.separate(
        tmp_path / f"b.{suffix}", instruments=["vocals"], model=fast, out=tmp_path / "out"
    )
    info = soundfile.info(files["vocals"])
    assert (info.samplerate, info.channels) == (48000, 2)
    assert info.duration == pytest.approx(3, abs=0.06)  # codecs pad


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_written(fast, tmp_path, rng, format):
    song = music(rng, 2, 44100, 2)
    soundfile.write(tmp_path / "a.wav", song, 44100)
    files = songs.separate(
        tmp_path / "a.wav", instruments=["bass"], model=fast, out=tmp_path, format=format
    )
    info = soundfile.info(files["bass"])
    assert (info.samplerate, info.channels) == (44100, 2)
    assert format in ("mp3", "ogg") or info.frames == len(song)


@pytest.mark.parametrize(
    ("suffix", "subtype", "shape"),
    [("wav", "PCM_U8", (11025, 11025, 1)), ("flac", "PCM_24", (96000, 192000, 6))],
)
def test_eight_bits_and_many_channels(fast, tmp_path, rng, suffix, subtype, shape):
    frames, rate, channels = shape
    song = tmp_path / f"a.{suffix}"
    soundfile.write(song, music(rng, frames / rate, rate, channels), rate, subtype=subtype)
    file = songs.separate(song, model=fast, out=tmp_path, format="flac")["other"]
    info = soundfile.info(file)
    assert (info.frames, info.samplerate, info.channels) == shape


FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # of MPEG audio, as programs have by chance
BAD = {
    "text like speech": b"La la la, not a song\n" * 500,  # lines as long as a frame of AMR
    "two frames": b"\x7fELF" + bytes(20000) + 2 * FRAME + bytes(20000),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_told_in_a_sentence_and_stops_no_other(fast, tmp_path, rng, capfd, kind):
    """What seems to be audio at first; ``test_bad_input.py`` has the rest."""
    good = tmp_path / "good.wav"
    soundfile.write(good, music(rng, 1, 16000, 1), 16000)
    path, out = tmp_path / "bad.mp3", tmp_path / "out"
    path.write_bytes(BAD[kind])
    status = cli.main(["separate", str(path), str(good), "--out", str(out)])
    told = capfd.readouterr()
    assert status == 1
    (line,) = told.err.splitlines()
    assert path.name in line and ";" in line and line.endswith(".")
    assert [folder.name for folder in out.iterdir()] == ["good"]


def test_nothing_is_left_where_every_song_fails(fast, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full((20000, 1), np.inf), 44100, subtype="FLOAT")
    assert cli.main(["separate", str(path), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_existing_files_stay_unless_forced(fast, tmp_path, rng, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, music(rng, 1, 16000, 1), 16000)
    (tmp_path / "out" / "a").mkdir(parents=True)
    kept = tmp_path / "out" / "a" / "bass.wav"
    kept.write_text("mine")
    command = ["separate", str(path), "--out", str(tmp_path / "out")]
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
    results, tmp_path, rng, capsys, way, out, kind
):
    path, way = tmp_path / "a.wav", tmp_path / way
    soundfile.write(path, music(rng, 1, 16000, 1), 16000)
    way.parent.mkdir(parents=True, exist_ok=True)
    way.mkdir() if kind.startswith("folder") else way.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["separate", str(path), "--out", str(tmp_path / out), "--force"]) == 1
    assert f"{way} is a {kind}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_halfway_leaves_the_old_files(fast, tmp_path, rng, monkeypatch, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, music(rng, 3, 16000, 1), 16000)
    command = ["separate", str(path), "--out", str(tmp_path / "out")]
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


HOLD = (
    "import sys, time; from pathlib import Path; from cunet_lib.separation import songs\n"
    "with songs._fresh_folder(Path(sys.argv[1])) as scratch:\n"
    "    (scratch / 'vocals.wav').write_bytes(b'half')\n"
    "    print(scratch, flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def other(tmp_path):
    """Another process that separates into the folder ``out``, and the temporary folder it uses."""
    process = started(sys.executable, "-c", HOLD, tmp_path / "out")
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def separate_into(out, rng):
    """One song into a folder, by the command."""
    song = out.with_name("song.wav")
    soundfile.write(song, music(rng, 1, 8000, 1), 8000)
    assert cli.main(["separate", str(song), "--out", str(out), "--force"]) == 0


def test_what_a_killed_separation_left_goes_and_a_live_ones_stays(fast, other, tmp_path, rng):
    process, scratch = other
    (tmp_path / "out" / ".partial-of-the-user").mkdir()
    separate_into(tmp_path / "out", rng)
    assert (scratch / "vocals.wav").read_bytes() == b"half"
    process.kill()
    process.wait()
    assert scratch.exists()
    separate_into(tmp_path / "out", rng)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".partial-of-the-user", "song"}


def test_where_nothing_can_be_locked_nothing_is_taken_for_left(
    fast, other, tmp_path, rng, monkeypatch
):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    _, scratch = other
    monkeypatch.setattr(fcntl, "flock", refuse)
    separate_into(tmp_path / "out", rng)
    assert (scratch / "vocals.wav").exists()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    separate_into(tmp_path / "out", rng)
    assert (scratch / "vocals.wav").exists()


def test_songs_of_one_name_do_not_meet(fast, tmp_path, rng):
    for name in ("a.wav", "a.flac", "b/a.wav", "c/d/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, music(rng, 0.2, 16000, 1), 16000)
    out = tmp_path / "out"

    def names(*given):
        return [
            str(name)
            for name in songs.find_songs([tmp_path / each for each in given], out)[0].values()
        ]

    assert names("a.wav", "c/d/a.wav") == [f"{tmp_path.name}/a.wav", "d/a.wav"]
    assert names("a.wav", "a.flac") == ["a.wav", "a.flac"]
    (tmp_path / "e" / "d").mkdir(parents=True)
    with pytest.raises(ConfigError, match="one folder"):
        names("c/d/a.wav", "e/d/a.wav")
    assert names(".") == ["b/a", "c/d/a", "a.flac", "a.wav"] or set(names(".")) == {
        *("a.flac", "a.wav", "b/a", "c/d/a")
    }
    assert cli.main(["separate", str(tmp_path), "--out", str(out), "--instruments", "bass"]) == 0
    found = {str(path.relative_to(out)) for path in out.rglob("bass.wav")}
    assert found == {f"{name}/bass.wav" for name in ("a.wav", "a.flac", "b/a", "c/d/a")}


def test_a_folder_goes_on_where_it_ended(fast, tmp_path, rng, capsys):
    for name in ("a.wav", "b.wav", ".hidden.wav", "@eaDir/a.wav", "text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, music(rng, 0.2, 16000, 1), 16000, format="WAV")
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


def test_what_is_in_the_way_is_told_before_the_work(fast, tmp_path, rng, capsys, monkeypatch):
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for path in paths:
        soundfile.write(path, music(rng, 0.2, 16000, 1), 16000)
    command = ["separate", *paths, "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*command[:1], paths[1], *command[3:]]) == 0
    assert capsys.readouterr() == ("", "")
    order, real = [], songs.separate_file
    monkeypatch.setattr(
        songs, "separate_file", lambda *a, **k: order.append("work") or real(*a, **k)
    )
    monkeypatch.setattr(cli, "_complain", order.append)
    assert cli.main(command) == 1
    assert "b/bass.wav exists" in order[0] and order[1:] == ["work"]


def test_an_excerpt_of_standard_input(fast, tmp_path, rng, monkeypatch):
    song = music(rng, 3, 16000, 1)
    soundfile.write(tmp_path / "a.wav", song, 16000, subtype="FLOAT")
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
    with pytest.raises(ConfigError, match="An excerpt"):
        songs.separate(tmp_path / "a.wav", model=fast, length=0)


def test_clipping_is_told(fast, tmp_path, rng, capsys):
    song = 20 * music(rng, 1, 16000, 1)
    soundfile.write(tmp_path / "a.wav", song, 16000, subtype="FLOAT")
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
        ["separate", "a.wav", "--instruments", "singer"],
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


def test_a_format_that_cannot_hold_the_song_is_refused(fast, tmp_path, rng, capsys):
    soundfile.write(tmp_path / "a.wav", music(rng, 0.1, 192000, 6), 192000)
    command = ["separate", str(tmp_path / "a.wav"), "--format", "mp3"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "--format wav" in capsys.readouterr().err


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
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch()
        if not place.startswith("project/results/demo/runs"):
            assert catalog.find("cnn_complex").path == path
    assert catalog.find().name == "demo/cnn_complex"
    assert len(catalog.available()) == 5
    card = cards.card(run_record(load_profile("demo"), "cnn_complex"), file=path.name)
    (path.parent / catalog.CARD).write_text(card)
    assert "no real music" in catalog.find().trained_on
    assert "unknown data" in catalog.find("musdb18/cnn_complex").trained_on


def test_model_of_unknown_settings_is_refused(tmp_path, monkeypatch):
    size = {**SHAPE, "shape": (256, 64, 1)}
    models.build("dense_simple", **size).save(tmp_path / "small.keras")
    with pytest.raises(ConfigError, match=r"run\.json"):
        songs.SongSeparator(catalog.find(str(tmp_path / "small.keras")))


def test_patches_overlap_even_if_the_study_lays_them_end_to_end(tmp_path):
    path = trained(tmp_path / "run", "dense_simple")
    joined = changed(SETTINGS, "separate", overlap=0.0)
    (path.parent / "run.json").write_text(json.dumps(run_record(joined, "dense_simple")))
    found = catalog.find(str(path))
    for overlap in (songs.OVERLAP, 0.75):
        separator = songs.SongSeparator(found, overlap=overlap).separator
        assert separator.frames == stream.PATCHES * SETTINGS.model.patch_frames
        shared = separator.frames * separator.separate.overlap
        assert shared == overlap * SETTINGS.model.patch_frames > 0
    with pytest.raises(ConfigError, match="below 1"):
        songs.SongSeparator(found, overlap=1)


def test_bfloat16_changes_the_shipped_models_parts_of_real_music_by_little():
    mixture = real_excerpt(STUDY_RATE)[0]
    found = catalog.describe(ROOT / "results" / "demo" / "models" / "cnn_complex.keras")
    rounded, exact = (
        songs.separate(mixture, STUDY_RATE, model=songs.SongSeparator(found, precision=precision))
        for precision in ("mixed_bfloat16", "float32")
    )
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


def test_licence_is_the_one_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'license = "{cards.LICENCE}"\nlicense-files = ["LICENSE"]\n' in project
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith(f"{cards.LICENCE} License")


def test_cards_get_their_scores_and_stand_beside_the_shipped_model(roots):
    paths = SETTINGS.paths
    shipped = SETTINGS.shipped
    trained(paths.run(shipped, 0), shipped)
    trained(paths.runs / "another", shipped)
    paths.models.mkdir()
    (paths.models / f"{shipped}.keras").touch()
    paths.scores.mkdir()
    rows = ["model,seed,track,target,metric,protocol,aggregation,value"]
    rows += [f"{shipped},0,{n},bass,SDR,BSS Eval v4,median over frames,{n}" for n in (1, 2, 6)]
    rows += [f"{shipped},0,1,bass,SDR,BSS Eval v3,whole track,99"]
    (paths.scores / "scores.csv").write_text("\n".join(rows) + "\n")
    cards.write_cards(SETTINGS)
    assert "| bass | 2.00 | 3 |" in (paths.models / catalog.CARD).read_text()
    assert "| bass | 2.00 | 3 |" in (paths.run(shipped, 0) / catalog.CARD).read_text()
    assert "Not known yet" in (paths.runs / "another" / catalog.CARD).read_text()
    found = catalog.find(f"smoke/{shipped}")
    assert cards.scores_of(found) == {"bass": (2.0, 3)} and found.seed == 0
    listed = catalog.table(catalog.available(), cards.scores_of).splitlines()
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


def test_limits_are_known_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="aiff holds 4"):
        Output("aiff", 44100, 2).check(1 << 29, tmp_path)
    for output in (Output("mp3", 192000, 2), Output("mp3", 44100, 6), Output("flac", 44100, 9)):
        with pytest.raises(ConfigError, match="--format wav"):
            output.check(9, tmp_path)
    assert Output("mp3", 44100, 2).size(100) < Output("flac", 44100, 2).size(100)
    assert not list(tmp_path.iterdir())


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


def test_bits_and_bit_rate(fast, tmp_path, rng):
    soundfile.write(tmp_path / "a.wav", music(rng, 2, 44100, 2), 44100)
    for format, options, subtype in (
        ("wav", {"bits": 16}, "PCM_16"),
        ("wav", {"bits": 24}, "PCM_24"),
        ("flac", {"bits": 16}, "PCM_16"),
    ):
        options = {"format": format, "instruments": ["bass"], "force": True, **options}
        files = songs.separate(tmp_path / "a.wav", model=fast, out=tmp_path, **options)
        assert soundfile.info(files["bass"]).subtype == subtype
    sizes = []
    for bitrate in ("64k", "256k"):
        options = {"format": "mp3", "instruments": ["bass"], "force": True, "bitrate": bitrate}
        files = songs.separate(tmp_path / "a.wav", model=fast, out=tmp_path, **options)
        sizes.append(files["bass"].stat().st_size)
    assert sizes[1] > 3 * sizes[0]


@pytest.mark.parametrize("place", [100, 16 + (1 << 20) - 3, 16 + (1 << 20), (1 << 21) + 50])
def test_a_second_file_behind_the_first_is_seen_wherever_it_begins(tmp_path, place):
    song = tmp_path / "a.wav"
    soundfile.write(song, np.zeros(1 << 20), 8192, subtype="PCM_16")
    content = bytearray(song.read_bytes() + b"\0" * 100)
    content[place : place + 8] = content[8:16]
    song.write_bytes(content)
    with pytest.raises(ConfigError, match="several files one behind the other"):
        audio.open_audio(song)
