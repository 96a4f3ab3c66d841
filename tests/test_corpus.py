"""The rendered corpus: determinism, layout, levels, disjoint tables, resuming, bad input.

``python tests/test_corpus.py`` writes the committed digest anew, for a change of the songs that is
meant.
"""

import hashlib
import json
import platform
import shutil
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import filelock
import numpy as np
import pytest
import scipy
import soundfile

from cunet_lib.signal.audio import ensure_ffmpeg
from rendered_corpus import CorpusError, render_corpus, tables
from rendered_corpus import render as corpus
from rendered_corpus.composer import compose, song_name
from rendered_corpus.font import play_kit
from rendered_corpus.harmony import parse_chord
from rendered_corpus.machines import play_machine
from rendered_corpus.mix import render
from rendered_corpus.patches import play_patch
from rendered_corpus.render import PARTS, quantise
from rendered_corpus.signals import RATE
from rendered_corpus.song import STEMS, SUBSETS, Note, Syllable
from rendered_corpus.voice import sing

DIGEST = Path(__file__).parent / "data" / "corpus_digest.json"
SMALL = {"train_tracks": 2, "test_tracks": 1, "seconds": 4.0, "seed": 0}
PROBE = 499  # every 499th sample of the committed songs is compared
MACHINES = {name: made for table in tables.MACHINES.values() for name, made in table.items()}
FAMILIES = [family for table in tables.PATCHES.values() for family in table.values()]
PATCHES = {name: patch for family in FAMILIES for name, patch in family.items()}


def pcm(root, record, part):
    """Samples ``(n, 2)`` of a rendered song."""
    path = root / record["subset"] / record["name"] / f"{part}.wav"
    return soundfile.read(path, dtype="int16")[0].astype(int)


def snapshot(root):
    """Bytes of every WAV file below a folder, by relative name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.wav"))}


def stamps(root):
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*.wav")}


def machine():
    """What decides the last bit: two machines that agree here must render the same bytes."""
    features = np.show_config(mode="dicts")["SIMD Extensions"]
    facts = [platform.machine(), platform.libc_ver(), np.__version__, scipy.__version__, features]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(root):
    """What is committed of a small corpus."""
    index = json.loads((root / "corpus.json").read_text(encoding="utf-8"))
    tracks = {
        f"{record['subset']}/{record['name']}": {
            part: pcm(root, record, part)[::PROBE].sum(1).tolist() for part in ("mixture", *STEMS)
        }
        for record in index["tracks"]
    }
    return {"machine": machine(), "hash": index["hash"], "tracks": tracks}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus of three short songs, rendered in this process."""
    root = tmp_path_factory.mktemp("corpus")
    return root, render_corpus(root, **SMALL, workers=1)


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small[0], tmp_path / "corpus")


@pytest.fixture(scope="module")
def songs():
    """Songs as data only, enough to meet every style."""
    return [compose(0, subset=s, index=k, seconds=30.0) for s in SUBSETS for k in range(40)]


def test_committed_digest(small):
    """Other processors may round a last bit differently; anything else is another song."""
    expected, found = json.loads(DIGEST.read_text(encoding="utf-8")), digest_of(small[0])
    assert list(found["tracks"]) == list(expected["tracks"])
    for name, parts in expected["tracks"].items():
        for part, samples in parts.items():
            np.testing.assert_allclose(found["tracks"][name][part], samples, rtol=0, atol=4)
    if found["machine"] == expected["machine"]:
        assert found["hash"] == expected["hash"]


def test_number_of_songs_and_processes_changes_no_byte(small, tmp_path):
    root, records = small
    assert render_corpus(tmp_path, **{**SMALL, "test_tracks": 0}, workers=2) == records[:2]
    whole = snapshot(root)
    assert snapshot(tmp_path) == {name: whole[name] for name in whole if "train" in name}
    assert not (tmp_path / ".rendering").exists()


def test_musdb_reads_it(small):
    ensure_ffmpeg()
    import musdb

    root, records = small
    database = musdb.DB(root=str(root), is_wav=True)
    assert sorted(t.name for t in database) == sorted(r["name"] for r in records)
    (track,) = [track for track in database if track.subset == "test"]
    assert (track.rate, len(track.audio)) == (RATE, round(records[-1]["seconds"] * RATE))
    assert set(track.targets) >= set(STEMS)
    stems = sum(track.targets[stem].audio for stem in STEMS)
    assert np.abs(stems - track.audio).max() < 1e-6


def test_files_are_musdb18_hq_whose_stems_add_up_without_clipping(small):
    root, records = small
    for record in records:
        for part in PARTS:
            info = soundfile.info(root / record["subset"] / record["name"] / f"{part}.wav")
            assert (info.samplerate, info.channels, info.subtype) == (44100, 2, "PCM_16")
            assert info.frames == round(record["seconds"] * RATE)
            assert 0.8 * 4.0 - 0.01 <= record["seconds"] <= 1.2 * 4.0 + 0.01
        parts = {part: pcm(root, record, part) for part in PARTS}
        assert np.array_equal(sum(parts[stem] for stem in STEMS), parts["mixture"])
        peak = 20 * np.log10(np.abs(parts["mixture"]).max() / 32768)
        assert -6.2 <= peak <= -0.4 and peak == pytest.approx(record["peak"], abs=0.01)
        assert all(np.abs(audio).max() < 32767 for audio in parts.values())
        assert all(np.abs(parts[stem]).max() > 100 for stem in STEMS)


def test_quantise_refuses_to_clip():
    with pytest.raises(ValueError, match="clips"):
        quantise({stem: np.full((10, 2), 0.4) for stem in STEMS})


def sounds(subset):
    return {
        "programs": {p for family in tables.PROGRAMS[subset].values() for p in family},
        "kits": set(tables.KITS[subset]),
        "machines": set(tables.MACHINES[subset]),
        "patches": {p for family in tables.PATCHES[subset].values() for p in family},
        "voices": set(tables.VOICES[subset]),
    }


def rotations(numerals):
    chords = numerals.split()
    return {tuple(chords[k:] + chords[:k]) for k in range(len(chords))}


def test_train_and_test_share_no_sound_and_no_progression():
    train, test = sounds("train"), sounds("test")
    for kind in train:
        assert train[kind] and test[kind] and not train[kind] & test[kind]
    train, test = (
        set().union(*(rotations(n) for _, n in tables.PROGRESSIONS[subset])) for subset in SUBSETS
    )
    assert not train & test
    for mine in tables.VOICES["test"].values():
        for theirs in tables.VOICES["train"].values():
            assert mine.tract[1] < theirs.tract[0] or theirs.tract[1] < mine.tract[0]
    for table in (MACHINES, PATCHES):
        assert len({str(x) for x in table.values()}) == len(table)


def test_songs_use_their_subset_s_sounds(songs):
    for song in songs:
        allowed = sounds(song.subset)
        assert set(song.programs) <= allowed["programs"]
        assert set(song.patches) <= allowed["patches"]
        assert set(song.voices) <= allowed["voices"]
        names = allowed["machines"] | {f"kit {k}" for k in allowed["kits"]}
        assert set(song.kit.split(" + ")) <= names
        assert set(song.progressions) <= {n for _, n in tables.PROGRESSIONS[song.subset]}


def test_songs_are_varied(songs):
    train = [song for song in songs if song.subset == "train"]
    assert len({song.style for song in train}) == len(tables.STYLES)
    assert {song.meter for song in train} == {"4/4", "3/4", "6/8"}
    assert min(s.tempo for s in train) < 75 and max(s.tempo for s in train) > 160
    assert len({song.key for song in train}) > 20
    used = Counter(voice for song in train for voice in song.voices)
    assert set(used) == set(tables.VOICES["train"])
    assert len({p for song in train for p in song.programs}) > 40
    assert len({song.name for song in songs}) == len(songs)
    assert train[0] == compose(0, subset="train", index=0, seconds=30.0)
    assert train[0].layers != compose(1, subset="train", index=0, seconds=30.0).layers


def test_names_are_unique_beyond_the_tables():
    names = {song_name(0, s, k) for s in SUBSETS for k in range(1500)}
    assert len(names) == 3000
    assert not any(set(name) & set('/\\:*?"<>|') for name in names)
    train, test = ({song_name(0, s, k).split(" - ")[0] for k in range(500)} for s in SUBSETS)
    assert not train & test


def test_every_stem_rests_and_plays_and_notes_lie_in_the_song(songs):
    for song in songs:
        for stem in STEMS:
            playing = [stem in section.parts for section in song.sections]
            assert any(playing), (song.name, stem)
            assert len(playing) == 1 or not all(playing), (song.name, stem)
        assert all(section.parts for section in song.sections)
        for notes in (layer.notes for layer in song.layers):
            starts = [note.start for note in notes]
            assert starts == sorted(starts) and starts[0] >= 0
            assert max(note.start + note.duration for note in notes) < song.seconds + 0.2
            assert all(0 < note.velocity <= 1 for note in notes)


def test_chords_are_parsed():
    assert parse_chord("bVII", 0).classes == (10, 2, 5)
    assert parse_chord("ii7", 0).classes == (2, 5, 9, 0)
    assert parse_chord("Imaj7", 7).classes == (7, 11, 2, 6)
    with pytest.raises(ValueError, match="H7"):
        parse_chord("H7", 0)


def spectrum(audio, first, last):
    """Frequencies in Hz and power of a signal between two times."""
    part = audio[int(first * RATE) : int(last * RATE)]
    power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
    return np.fft.rfftfreq(len(part), 1 / RATE), power


def sung(rng, pitch, *, name="Vance", syllable=("", ("a",), ""), start=0.3):
    """Three seconds of a singer who sings one syllable for 1.2 s."""
    note = Note(start, 1.2, pitch, 0.8, 0.0, Syllable(*syllable))
    voice = tables.VOICES["train"][name]
    return sing(voice, [note], samples=3 * RATE, rng=rng)


def test_voice_sings_the_pitch(rng):
    hertz, power = spectrum(sung(rng, 57), 0.5, 1.2)
    harmonic = (np.abs(hertz / 220 - np.round(hertz / 220)) * 220 < 20) & (hertz > 100)
    band = (hertz > 100) & (hertz < 2000)
    assert power[harmonic & band].sum() > 0.9 * power[band].sum()


def test_voice_has_vowels(rng):
    """Energy between 1.8 and 3 kHz against 0.6 to 1.3 kHz tells "ee" from "ah"."""
    ratio = {}
    for vowel in ("a", "i"):
        hertz, power = spectrum(sung(rng, 50, syllable=("", (vowel,), "")), 0.5, 1.2)
        upper = power[(hertz > 1800) & (hertz < 3000)].sum()
        ratio[vowel] = upper / power[(hertz > 600) & (hertz < 1300)].sum()
    assert ratio["i"] > 10 * ratio["a"]


def test_voice_has_consonants_and_rests(rng):
    audio = sung(rng, 57, syllable=("s", ("a",), ""), start=1.0)
    # A breath begins half a second before, at most.
    assert np.abs(audio[: RATE // 2]).max() < 1e-3 * np.abs(audio).max()
    assert np.abs(audio[int(2.8 * RATE) :]).max() < 1e-3 * np.abs(audio).max()
    hertz, power = spectrum(audio, 0.92, 0.98)
    assert power[hertz > 4000].sum() > 5 * power[hertz < 2000].sum()
    assert {*tables.ONSETS, *tables.CODAS} - {""} <= set(tables.CONSONANTS)
    assert {v for vowels in tables.NUCLEI for v in vowels.split()} <= set(tables.VOWELS)


def test_longer_tracts_sound_lower(rng):
    centres = []
    for name in ("Bruno", "Pip"):
        hertz, power = spectrum(sung(rng, 60, name=name), 0.5, 1.2)
        band = (hertz > 500) & (hertz < 5000)
        centres.append((hertz[band] * power[band]).sum() / power[band].sum())
    assert centres[0] < centres[1]


def test_vocals_rest_in_the_sound_too():
    song = compose(0, subset="train", index=0, seconds=16.0)
    stem = render(song)["vocals"]
    assert stem.shape == (int(song.seconds * RATE), 2)
    blocks = np.abs(stem[: len(stem) // 4410 * 4410]).reshape(-1, 8820).max(axis=1)
    assert 0.02 < (blocks < 1e-3 * blocks.max()).mean() < 0.9


def test_kits_and_machines_strike_on_time(rng):
    notes = [Note(0.5, 0.2, 36, 0.9), Note(1.0, 0.2, 38, 0.9)]
    kit = play_kit(notes, 0, samples=2 * RATE, cents=0.0, rng=rng)
    for audio in (kit, play_machine(notes, MACHINES["round"], samples=2 * RATE, rng=rng)):
        loud = np.flatnonzero(np.abs(audio) > 0.05 * np.abs(audio).max()) / RATE
        assert 0.495 < loud[0] < 0.53
        assert np.any((loud > 0.995) & (loud < 1.03))


@pytest.mark.parametrize("name", sorted(PATCHES))
def test_patches_play_their_pitch(name, rng):
    audio = play_patch([Note(0.1, 0.9, 57, 0.9)], PATCHES[name], samples=RATE, rng=rng)
    assert np.isfinite(audio).all() and np.abs(audio).max() > 0.01
    hertz, power = spectrum(audio, 0.2, 0.9)
    step = 110 if PATCHES[name].sub else 220
    near = np.abs(hertz / step - np.round(hertz / step)) * step < 25
    assert power[near].sum() > 0.85 * power.sum()


def test_finished_songs_are_kept(small, copy, capsys):
    before = stamps(copy)
    assert render_corpus(copy, **SMALL, workers=1) == small[1]
    assert stamps(copy) == before
    assert capsys.readouterr().out == "songs rendered 3/3\n"


def test_changed_and_missing_songs_are_rendered_again(small, copy):
    first, second, third = (copy / r["subset"] / r["name"] for r in small[1])
    shutil.copyfile(first / "drums.wav", first / "bass.wav")
    (second / "mixture.wav").unlink()
    before = stamps(copy)
    render_corpus(copy, **SMALL, workers=1)
    assert snapshot(copy) == snapshot(small[0])
    kept = {name for name, stamp in stamps(copy).items() if before.get(name) == stamp}
    assert kept == {name for name in before if third.name in name}


def test_other_code_renders_anew_and_songs_of_other_settings_go(copy, monkeypatch):
    before = stamps(copy)
    monkeypatch.setattr(corpus, "code_hash", lambda: "other")
    (record,) = render_corpus(copy, **{**SMALL, "train_tracks": 0}, workers=1)
    after = stamps(copy)
    assert {Path(name).parent.name for name in after} == {record["name"]}
    assert all(after[name] != before[name] for name in after)


def test_code_is_what_decides_the_songs(tmp_path, monkeypatch):
    """Neither comments nor docstrings, but tables and statements."""
    sources = shutil.copytree(Path(corpus.__file__).parent, tmp_path / "rendered_corpus")
    monkeypatch.setattr(corpus, "__file__", str(sources / "render.py"))
    before = corpus.code_hash()
    bass = sources / "bass.py"
    text = bass.read_text(encoding="utf-8")
    bass.write_text(text.replace('"""The bass', '# Low.\n"""The low bass', 1), encoding="utf-8")
    assert corpus.code_hash() == before
    bass.write_text(text + "\nX = 1\n", encoding="utf-8")
    changed = corpus.code_hash()
    monkeypatch.setattr(corpus, "TABLES", {**corpus.TABLES, "kits": {}})
    assert len({before, changed, corpus.code_hash()}) == 3


def test_interrupted_rendering_leaves_no_index_and_no_half_song(copy, monkeypatch):
    before = snapshot(copy)
    monkeypatch.setattr(corpus, "render", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        render_corpus(copy, **{**SMALL, "train_tracks": 3}, workers=1)
    assert not (copy / "corpus.json").exists()
    assert snapshot(copy) == before
    monkeypatch.undo()
    assert len(render_corpus(copy, **SMALL, workers=1)) == 3 and snapshot(copy) == before


BAD = [("train_tracks", -1), ("test_tracks", 1.5), ("seconds", 0.5), ("seconds", float("nan"))]


@pytest.mark.parametrize(("name", "value"), [*BAD, ("seed", -3), ("workers", 0)])
def test_bad_numbers_are_named(tmp_path, name, value):
    with pytest.raises(CorpusError, match=f"^{name} must .*{value}"):
        render_corpus(tmp_path / "new", **{**SMALL, "workers": 1, name: value})
    assert not (tmp_path / "new").exists()


def test_no_song_and_no_folder_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="at least one song"):
        render_corpus(tmp_path, **{**SMALL, "train_tracks": 0, "test_tracks": 0})
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        CorpusError, match=r"cannot be written to .*file \(File exists\).* again\.$"
    ):
        render_corpus(tmp_path / "file", **SMALL)


def test_one_process_renders_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "WAIT", 0.0)
    lock = filelock.FileLock(tmp_path / ".lock")
    with lock, pytest.raises(CorpusError, match="Another process renders"):
        render_corpus(tmp_path, **SMALL)


def test_foreign_tracks_are_left_alone(tmp_path):
    foreign = tmp_path / "train" / "Someone - Else"
    foreign.mkdir(parents=True)
    (foreign / "mixture.wav").write_bytes(b"mine")
    with pytest.raises(CorpusError, match="Someone - Else"):
        render_corpus(tmp_path, **SMALL)
    assert (foreign / "mixture.wav").read_bytes() == b"mine"


def test_a_full_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(CorpusError, match="free"):
        render_corpus(tmp_path, **SMALL)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        render_corpus(folder, **SMALL)
        text = json.dumps(digest_of(Path(folder)), indent=None, separators=(",", ":"))
    DIGEST.write_text(text + "\n", encoding="utf-8")
