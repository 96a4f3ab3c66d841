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

import numpy as np
import pytest
import soundfile

from cunet_lib.preprocess.tracks import ensure_ffmpeg
from rendered_corpus import composer, synth
from rendered_corpus import render as corpus
from rendered_corpus.render import RATE, STEMS, compose, quantise, read_index, render, render_corpus
from rendered_corpus.voice import CONSONANTS, VOWELS, sing

DIGEST = Path(__file__).parent / "data" / "corpus_digest.json"
PARTS = ("mixture", *STEMS)
SMALL = {"train_tracks": 2, "test_tracks": 1, "seconds": 4.0, "seed": 0}
PROBE = 499  # every 499th sample of the committed songs is compared


def snapshot(root):
    """Bytes of every WAV file below a folder, by relative name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.wav"))}


def machine():
    """What decides the last bit: two machines that agree here must render the same bytes."""
    import scipy

    features = np.show_config(mode="dicts")["SIMD Extensions"]
    facts = [platform.machine(), platform.libc_ver(), np.__version__, scipy.__version__, features]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(root):
    """What is committed of a small corpus."""
    index = read_index(root)
    tracks = {}
    for record in index["tracks"]:
        folder = root / record["subset"] / record["name"]
        tracks[f"{record['subset']}/{record['name']}"] = {
            part: soundfile.read(folder / f"{part}.wav", dtype="int16")[0][::PROBE].sum(1).tolist()
            for part in PARTS
        }
    return {"machine": machine(), "hash": index["hash"], "tracks": tracks}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus of three short songs, rendered in this process."""
    root = tmp_path_factory.mktemp("corpus")
    return root, render_corpus(root, **SMALL, workers=1)


@pytest.fixture(scope="module")
def songs():
    """Songs as data only, enough to meet every style."""
    return [
        compose(0, subset=subset, index=index, seconds=30.0)
        for subset in composer.SUBSETS
        for index in range(40)
    ]


# ------------------------------------------------------------------------------- determinism


def test_committed_digest(small):
    """Other processors may round a last bit differently; anything else is another song."""
    expected, found = json.loads(DIGEST.read_text(encoding="utf-8")), digest_of(small[0])
    assert list(found["tracks"]) == list(expected["tracks"])
    for name, parts in expected["tracks"].items():
        for part, samples in parts.items():
            np.testing.assert_allclose(found["tracks"][name][part], samples, rtol=0, atol=4)
    if found["machine"] == expected["machine"]:
        assert found["hash"] == expected["hash"]


def test_number_of_processes_changes_no_byte(small, tmp_path):
    render_corpus(tmp_path, **SMALL, workers=2)
    assert snapshot(tmp_path) == snapshot(small[0])
    assert read_index(tmp_path) == read_index(small[0])


def test_songs_do_not_depend_on_how_many_there_are(small, tmp_path):
    fewer = render_corpus(tmp_path, **{**SMALL, "train_tracks": 1, "test_tracks": 0}, workers=1)
    assert fewer[0] == small[1][0]


def test_seed_changes_the_songs():
    first, second = (compose(seed, subset="train", index=0, seconds=8.0) for seed in (0, 1))
    assert first.name != second.name and first.layers != second.layers
    assert first == compose(0, subset="train", index=0, seconds=8.0)


# ------------------------------------------------------------------------------------ layout


def test_musdb_reads_it(small):
    ensure_ffmpeg()
    import musdb

    root, records = small
    database = musdb.DB(root=str(root), is_wav=True)
    assert sorted(t.name for t in database) == sorted(r["name"] for r in records)
    (track,) = [track for track in database if track.subset == "test"]
    record = records[-1]
    assert track.rate == RATE
    assert track.audio.shape == (round(record["seconds"] * RATE), 2)
    assert set(track.targets) >= set(STEMS)
    stems = sum(track.targets[stem].audio for stem in STEMS)
    assert np.abs(stems - track.audio).max() < 1e-6


def test_files_are_musdb18_hq(small):
    root, records = small
    for record in records:
        folder = root / record["subset"] / record["name"]
        for part in PARTS:
            info = soundfile.info(folder / f"{part}.wav")
            assert (info.samplerate, info.channels, info.subtype) == (44100, 2, "PCM_16")
            assert info.frames == round(record["seconds"] * RATE)
            assert 0.8 * 4.0 - 0.01 <= record["seconds"] <= 1.2 * 4.0 + 0.01


def test_mixture_is_the_sum_and_does_not_clip(small):
    root, records = small
    for record in records:
        folder = root / record["subset"] / record["name"]
        pcm = {p: soundfile.read(folder / f"{p}.wav", dtype="int16")[0].astype(int) for p in PARTS}
        assert np.array_equal(sum(pcm[stem] for stem in STEMS), pcm["mixture"])
        peak = np.abs(pcm["mixture"]).max()
        assert -6.2 <= 20 * np.log10(peak / 32768) <= -0.4
        assert 20 * np.log10(peak / 32768) == pytest.approx(record["peak"], abs=0.01)
        assert all(np.abs(audio).max() < 32767 for audio in pcm.values())
        assert all(np.abs(pcm[stem]).max() > 100 for stem in STEMS)


def test_quantise_refuses_to_clip():
    loud = {stem: np.full((10, 2), 0.4) for stem in STEMS}
    with pytest.raises(ValueError, match="clips"):
        quantise(loud)


# ------------------------------------------------------------------------------------- music


def sounds(subset):
    return {
        "programs": {p for family in composer.PROGRAMS[subset].values() for p in family},
        "kits": set(composer.KITS[subset]),
        "machines": set(composer.MACHINES[subset]),
        "patches": {p for family in composer.PATCHES[subset].values() for p in family},
        "voices": set(composer.VOICES[subset]),
    }


@pytest.mark.parametrize("kind", ["programs", "kits", "machines", "patches", "voices"])
def test_train_and_test_share_no_instrument(kind):
    train, test = sounds("train")[kind], sounds("test")[kind]
    assert train and test and not train & test


def rotations(numerals):
    chords = numerals.split()
    return {tuple(chords[k:] + chords[:k]) for k in range(len(chords))}


def test_train_and_test_share_no_progression():
    train = set().union(*(rotations(n) for _, n in composer.PROGRESSIONS["train"]))
    test = set().union(*(rotations(n) for _, n in composer.PROGRESSIONS["test"]))
    assert not train & test


def test_train_and_test_share_no_vocal_tract():
    for mine in composer.VOICES["test"].values():
        for theirs in composer.VOICES["train"].values():
            assert mine.tract[1] < theirs.tract[0] or theirs.tract[1] < mine.tract[0]


def test_synthetic_instruments_differ_in_their_parameters():
    for table, names in (
        (synth.MACHINES, [sounds(s)["machines"] for s in composer.SUBSETS]),
        (synth.PATCHES, [sounds(s)["patches"] for s in composer.SUBSETS]),
    ):
        assert set().union(*names) == set(table)
        assert len({str(x) for x in table.values()}) == len(table)


def test_songs_use_their_subset_s_sounds(songs):
    for song in songs:
        allowed = sounds(song.subset)
        assert set(song.programs) <= allowed["programs"]
        assert set(song.patches) <= allowed["patches"]
        assert set(song.voices) <= allowed["voices"]
        names = allowed["machines"] | {f"kit {k}" for k in allowed["kits"]}
        assert set(song.kit.split(" + ")) <= names
        assert set(song.progressions) <= {n for _, n in composer.PROGRESSIONS[song.subset]}


def test_songs_are_varied(songs):
    train = [song for song in songs if song.subset == "train"]
    assert len({song.style for song in train}) == len(composer.STYLES)
    assert {song.meter for song in train} == {"4/4", "3/4", "6/8"}
    assert min(s.tempo for s in train) < 75 and max(s.tempo for s in train) > 160
    assert len({song.key for song in train}) > 20
    used = Counter(voice for song in train for voice in song.voices)
    assert set(used) == set(composer.VOICES["train"])
    assert len({p for song in train for p in song.programs}) > 40
    assert len({song.name for song in songs}) == len(songs)


def test_names_are_unique_beyond_the_tables():
    names = {composer.song_name(0, s, k) for s in composer.SUBSETS for k in range(1500)}
    assert len(names) == 3000
    assert not any(set(name) & set('/\\:*?"<>|') for name in names)
    artists = [
        {composer.song_name(0, s, k).split(" - ")[0] for k in range(500)} for s in composer.SUBSETS
    ]
    assert not artists[0] & artists[1]


def test_every_stem_rests_and_plays(songs):
    for song in songs:
        for stem in STEMS:
            playing = [stem in section.parts for section in song.sections]
            assert any(playing), (song.name, stem)
            if len(playing) > 1:
                assert not all(playing), (song.name, stem)
        assert all(section.parts for section in song.sections)


def test_notes_lie_in_the_song(songs):
    for song in songs:
        for layer in song.layers:
            starts = [note.start for note in layer.notes]
            assert starts == sorted(starts) and starts[0] >= 0
            assert max(note.start + note.duration for note in layer.notes) < song.seconds + 0.2
            assert all(0 < note.velocity <= 1 for note in layer.notes)


def test_chords_are_parsed():
    assert composer.parse_chord("bVII", 0).classes == (10, 2, 5)
    assert composer.parse_chord("ii7", 0).classes == (2, 5, 9, 0)
    assert composer.parse_chord("Imaj7", 7).classes == (7, 11, 2, 6)
    with pytest.raises(ValueError, match="H7"):
        composer.parse_chord("H7", 0)
    for subset in composer.SUBSETS:
        for mode, numerals in composer.PROGRESSIONS[subset]:
            assert mode in composer.MODES
            assert all(composer.parse_chord(n, 0).tones for n in numerals.split())


# ------------------------------------------------------------------------------------- sound


def spectrum(audio):
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    return np.fft.rfftfreq(len(audio), 1 / RATE), power


def note(pitch, vowel="a", start=0.3, duration=1.2):
    return composer.Note(start, duration, pitch, 0.8, 0.0, composer.Syllable("", (vowel,), ""))


def voice(subset="train", name="Vance"):
    return composer.VOICES[subset][name]


def test_voice_sings_the_pitch(rng):
    audio = sing(voice(), [note(57)], samples=2 * RATE, rate=RATE, rng=rng)
    hertz, power = spectrum(audio[int(0.5 * RATE) : int(1.2 * RATE)])
    harmonic = (np.abs(hertz / 220 - np.round(hertz / 220)) * 220 < 20) & (hertz > 100)
    band = (hertz > 100) & (hertz < 2000)
    assert power[harmonic & band].sum() > 0.9 * power[band].sum()


def test_voice_has_vowels(rng):
    """Energy between 1.8 and 3 kHz against 0.6 to 1.3 kHz tells "ee" from "ah"."""
    ratio = {}
    for vowel in ("a", "i"):
        audio = sing(voice(), [note(50, vowel)], samples=2 * RATE, rate=RATE, rng=rng)
        hertz, power = spectrum(audio[int(0.5 * RATE) : int(1.2 * RATE)])
        upper = power[(hertz > 1800) & (hertz < 3000)].sum()
        ratio[vowel] = upper / power[(hertz > 600) & (hertz < 1300)].sum()
    assert ratio["i"] > 10 * ratio["a"]


def test_voice_has_consonants_and_rests(rng):
    syllable = composer.Syllable("s", ("a",), "")
    sung = [composer.Note(1.0, 0.6, 57, 0.8, 0.0, syllable)]
    audio = sing(voice(), sung, samples=3 * RATE, rate=RATE, rng=rng, breaths=False)
    assert np.abs(audio[: int(0.7 * RATE)]).max() < 1e-3 * np.abs(audio).max()
    assert np.abs(audio[int(2.2 * RATE) :]).max() < 1e-3 * np.abs(audio).max()
    hertz, power = spectrum(audio[int(0.92 * RATE) : int(0.98 * RATE)])
    assert power[hertz > 4000].sum() > 5 * power[hertz < 2000].sum()
    assert {s for s in composer._ONSETS if s} <= set(CONSONANTS)
    assert {v for vowels in composer._VOWELS for v in vowels} <= set(VOWELS)


def test_longer_tracts_sound_lower(rng):
    centres = []
    for name in ("Bruno", "Pip"):
        audio = sing(voice(name=name), [note(60)], samples=2 * RATE, rate=RATE, rng=rng)
        hertz, power = spectrum(audio[int(0.5 * RATE) : int(1.2 * RATE)])
        band = (hertz > 500) & (hertz < 5000)
        centres.append((hertz[band] * power[band]).sum() / power[band].sum())
    assert centres[0] < centres[1]


def test_vocals_rest_in_the_sound_too():
    song = compose(0, subset="train", index=0, seconds=16.0)
    vocals = render(song)["vocals"]
    assert vocals.shape == (int(song.seconds * RATE), 2)
    blocks = np.abs(vocals[: len(vocals) // 4410 * 4410]).reshape(-1, 8820).max(axis=1)
    assert 0.02 < (blocks < 1e-3 * blocks.max()).mean() < 0.9


def test_kits_and_machines_strike_on_time(rng):
    notes = [composer.Note(0.5, 0.2, 36, 0.9), composer.Note(1.0, 0.2, 38, 0.9)]
    kit = synth.play_kit(notes, 0, samples=2 * RATE, cents=0.0, rng=rng)
    own = synth.play_machine(notes, synth.MACHINES["round"], samples=2 * RATE, rng=rng)
    for audio in (kit, own):
        loud = np.flatnonzero(np.abs(audio) > 0.05 * np.abs(audio).max()) / RATE
        assert 0.495 < loud[0] < 0.53
        assert np.any((loud > 0.995) & (loud < 1.03))


@pytest.mark.parametrize("name", sorted(synth.PATCHES))
def test_patches_play_their_pitch(name, rng):
    audio = synth.play_patch(
        [composer.Note(0.1, 0.9, 57, 0.9)], synth.PATCHES[name], samples=RATE, rng=rng
    )
    assert np.isfinite(audio).all() and np.abs(audio).max() > 0.01
    hertz, power = spectrum(audio[int(0.2 * RATE) : int(0.9 * RATE)])
    step = 110 if synth.PATCHES[name].sub else 220
    near = np.abs(hertz / step - np.round(hertz / step)) * step < 25
    assert power[near].sum() > 0.85 * power.sum()


# ----------------------------------------------------------------------------------- resuming


@pytest.fixture
def copy(small, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(small[0], root)
    return root


def stamps(root):
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*.wav")}


def test_finished_songs_are_kept(small, copy):
    before = stamps(copy)
    assert render_corpus(copy, **SMALL, workers=1) == small[1]
    assert stamps(copy) == before


def test_changed_and_missing_songs_are_rendered_again(small, copy):
    first, second, third = (copy / r["subset"] / r["name"] for r in small[1])
    audio, rate = soundfile.read(first / "bass.wav", dtype="int16")
    audio[1000] += 1
    soundfile.write(first / "bass.wav", audio, rate, subtype="PCM_16")
    (second / "mixture.wav").unlink()
    before = stamps(copy)
    render_corpus(copy, **SMALL, workers=1)
    assert snapshot(copy) == snapshot(small[0])
    kept = {name for name, stamp in stamps(copy).items() if before.get(name) == stamp}
    assert kept == {name for name in before if third.name in name}


def test_other_code_renders_anew(copy, monkeypatch):
    before = stamps(copy)
    monkeypatch.setattr(corpus, "code_hash", lambda *modules: "other")
    render_corpus(copy, **SMALL, workers=1)
    after = stamps(copy)
    assert all(after[name] != before[name] for name in before)


def test_songs_of_other_settings_go(copy):
    render_corpus(copy, **{**SMALL, "train_tracks": 1}, workers=1)
    assert len(list((copy / "train").iterdir())) == 1
    assert not (copy / ".rendering").exists()


def test_interrupted_rendering_leaves_no_index_and_no_half_song(copy, monkeypatch):
    before = snapshot(copy)

    def fail(song):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        render_corpus(copy, **{**SMALL, "train_tracks": 3}, workers=1)
    assert not (copy / "corpus.json").exists()
    assert snapshot(copy) == before
    monkeypatch.undo()
    records = render_corpus(copy, **SMALL, workers=1)
    assert snapshot(copy) == before and len(records) == 3


def test_progress_sees_every_song(copy):
    seen = []

    def count(items, total):
        for item in items:
            seen.append((item["name"], total))
            yield item

    records = render_corpus(copy, **SMALL, workers=1, progress=count)
    assert sorted(seen) == sorted((r["name"], 3) for r in records)


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"train_tracks": -1}, "train_tracks"),
        ({"test_tracks": 1.5}, "test_tracks"),
        ({"train_tracks": 0, "test_tracks": 0}, "at least one song"),
        ({"seconds": 0.5}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seed": -3}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_numbers_are_named(tmp_path, change, word):
    with pytest.raises(ValueError, match=word):
        render_corpus(tmp_path / "new", **{**SMALL, "workers": 1, **change})
    assert not (tmp_path / "new").exists()


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        render_corpus(tmp_path / "file", **SMALL)


def test_foreign_tracks_are_left_alone(tmp_path):
    foreign = tmp_path / "train" / "Someone - Else"
    foreign.mkdir(parents=True)
    (foreign / "mixture.wav").write_bytes(b"mine")
    with pytest.raises(ValueError, match="Someone - Else"):
        render_corpus(tmp_path, **SMALL)
    assert (foreign / "mixture.wav").read_bytes() == b"mine"


def test_a_full_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ValueError, match="free"):
        render_corpus(tmp_path, **SMALL)


def test_index_errors(tmp_path):
    with pytest.raises(ValueError, match="render the corpus first"):
        read_index(tmp_path)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "change", [{"subset": "valid"}, {"index": -1}, {"seconds": 0.0}, {"seed": -1}]
)
def test_compose_names_bad_input(change):
    arguments = {"seed": 0, "subset": "train", "index": 0, "seconds": 8.0, **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        compose(arguments.pop("seed"), **arguments)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        render_corpus(folder, **SMALL)
        text = json.dumps(digest_of(Path(folder)), indent=None, separators=(",", ":"))
    DIGEST.write_text(text + "\n", encoding="utf-8")
