"""Tracks, splits and the prepared store."""

import numpy as np
import pytest
import soundfile
from conftest import changed, write_tones

from cunet_lib.core.files import WriteError, locked
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.preprocess.store import Store, build_store, open_store
from cunet_lib.signal.spectral import magnitude_scale


@pytest.fixture
def study(roots):
    """Settings of a study of its own, with a corpus that the test may change."""
    settings = load_profile("smoke")
    write_tones(settings.paths.corpus, train=3, test=1, seconds=1.0)
    return settings


def test_the_index_tells_the_truth_and_the_stems_add_up(tones):
    settings, store = tones
    for entry in store.entries:
        audio = store.audio(entry)
        assert audio.shape == (5, entry.samples) and audio.dtype == np.float32
        assert entry.seconds == pytest.approx(4.0, abs=1e-3)
        assert entry.scale == pytest.approx(magnitude_scale(audio[0], settings.signal))
        assert np.abs(audio[0] - audio[1:].sum(axis=0)).max() < 1e-4
    names = [{entry.name for entry in store.split(split)} for split in ("train", "valid", "test")]
    assert [len(split) for split in names] == [3, 1, 2] and len(set.union(*names)) == 6


def test_an_excerpt_is_the_loudest_stretch_of_a_stem(tones):
    _, store = tones
    entry = store.entries[0]
    audio = store.audio(entry)
    levels = [
        np.sum(audio[2, n : n + 4096].astype(float) ** 2) for n in range(len(audio[2]) - 4095)
    ]
    found = store.excerpt(entry, "drums", 0.5)
    np.testing.assert_array_equal(found, audio[:, np.argmax(levels) :][:, :4096])
    np.testing.assert_array_equal(store.excerpt(entry, "bass", 99.0), audio)


def test_building_again_does_only_what_changed(study, monkeypatch):
    first = build_store(study, workers=1)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*.npy")}
    again = build_store(study, workers=1)
    assert {p.name: p.stat().st_mtime_ns for p in again.folder.glob("*.npy")} == stamps
    assert again.hash == first.hash

    changed = next(iter(sorted((study.paths.corpus / "train").iterdir())))
    audio, rate = soundfile.read(changed / "mixture.wav", dtype="int16")
    soundfile.write(changed / "mixture.wav", audio // 2, rate, subtype="PCM_16")
    third = build_store(study, workers=1)
    kept = {path.name for path in third.folder.glob("*.npy")} & set(stamps)
    assert len(kept) == len(stamps) - 1
    assert third.hash != first.hash

    # Code that decodes otherwise decodes all of them again.
    monkeypatch.setattr("cunet_lib.preprocess.store.code_hash", lambda *places: "changed")
    files = {entry.file for entry in build_store(study, workers=1).entries}
    assert not files & {entry.file for entry in third.entries}


def test_a_damaged_file_is_made_again(study):
    store = build_store(study, workers=1)
    path = store.folder / store.entries[0].file
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ConfigError, match="damaged"):
        store.audio(store.entries[0])
    assert build_store(study, workers=1).hash == store.hash
    assert path.read_bytes() == content

    store.verify("train", "valid", "test")
    path = store.folder / store.split("train")[0].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # same size: only the hash tells
    path.write_bytes(content)
    store.audio(store.split("train")[0])
    store.verify("valid", "test")
    with pytest.raises(ConfigError, match=rf"{path.name} is missing or damaged; run the prepro"):
        store.verify("train")
    build_store(study, workers=1).verify("train")


def test_a_full_disk_keeps_the_finished_store(study, full_disk):
    store = build_store(study, workers=1)
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    first = store.folder / store.entries[0].file
    first.unlink()
    full_disk("rename")
    with pytest.raises(WriteError, match=rf"{first.name} cannot be written"):
        build_store(study, workers=1)
    del before[first.name]
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_two_processes_do_not_prepare_one_store(study, monkeypatch):
    monkeypatch.setattr(
        "cunet_lib.preprocess.store.locked", lambda path, busy, *, seconds: locked(path, busy)
    )
    refused = pytest.raises(ConfigError, match="Another process prepares the store")
    with locked(study.paths.store / ".lock", "busy"), refused:
        build_store(study, workers=1)


def test_an_interrupted_store_is_not_believed(study, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cunet_lib.preprocess.store.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            build_store(study, workers=1)
    with pytest.raises(ConfigError, match=r"index\.json is missing; run `make reproduce`"):
        Store(study.paths.store)


def test_a_store_of_other_settings_is_refused(study):
    build_store(study, workers=1)
    assert open_store(study).entries
    with pytest.raises(ConfigError, match="other data or signal settings"):
        open_store(changed(study, "signal", hop=512))
