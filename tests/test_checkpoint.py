"""Checkpoints on disk: whole, or not at all."""

import numpy as np
import pytest

from cunet_lib.core.files import WriteError
from cunet_lib.train import checkpoint
from cunet_lib.train.checkpoint import Checkpoint

FACTS = {"model": "unet_bass", "seed": 0, "settings": "abc", "versions": {"numpy": "2"}}


def made(epoch, **facts):
    return Checkpoint(
        facts={**FACTS, **facts},
        state={"epochs": epoch, "history": [{"loss": 0.1 + epoch}]},
        variables=[
            *(np.full((2, 3), epoch, np.float32), np.array([7, epoch], np.uint32)),
            *(np.array(epoch, np.int64), np.arange(epoch, dtype=np.float32)),
        ],
    )


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of three epochs."""
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path / "checkpoint", made(epoch))
    return tmp_path / "checkpoint"


def names(folder):
    return sorted(path.name.split(".")[0] for path in folder.iterdir())


def test_what_is_read_is_what_was_written_and_the_one_before_is_kept(folder):
    found = checkpoint.load(folder, FACTS)
    expected = made(3)
    assert found.state == expected.state and found.facts == FACTS
    for ours, theirs in zip(found.variables, expected.variables, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert names(folder) == ["epoch-000002", "epoch-000003"]


def test_what_is_kept_is_told_in_every_state(folder):
    run = folder.parent
    assert checkpoint.kept(run) == "epoch 3 is kept; the same command continues from there"
    (run / "run.json").touch()
    assert checkpoint.kept(run).startswith("the training is finished and kept")
    assert checkpoint.kept(folder).startswith("no epoch was finished")


def test_more_arrays_than_ten_keep_their_order(tmp_path):
    arrays = [np.array(index) for index in range(120)]
    checkpoint.save(tmp_path, Checkpoint(FACTS, {"epochs": 1}, arrays))
    found = checkpoint.load(tmp_path, FACTS)
    assert [int(value) for value in found.variables] == list(range(120))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
    ],
    ids=["cut", "empty", "one bit"],
)
def test_a_damaged_one_is_seen_and_the_one_before_is_used(folder, damage):
    newest = max(folder.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    lines = []
    assert checkpoint.load(folder, FACTS, lines.append).state["epochs"] == 2
    assert lines == [f"checkpoint {newest.name} is damaged and is passed over"]
    for path in folder.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert checkpoint.load(folder, FACTS, lines.append) is None
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("changed", "word"), [({"seed": 1}, "seed"), ({"versions": {"numpy": "3"}}, "versions")]
)
def test_one_of_another_training_is_discarded_in_one_line(folder, changed, word):
    lines = []
    assert checkpoint.load(folder, {**FACTS, **changed}, lines.append) is None
    assert lines == [f"an unfinished training of 3 epochs is discarded: {word} changed since"]


def test_what_a_killed_process_left_is_no_checkpoint(folder):
    (folder / ".epoch-000004.partial-abcd").write_bytes(b"half")
    (folder / "epoch-nine.npz").write_bytes(b"not ours")
    assert checkpoint.load(folder, FACTS).state["epochs"] == 3
    assert not list(folder.glob(".*partial*"))


@pytest.mark.parametrize("where", ["archive", "rename"])
def test_a_full_disk_leaves_the_earlier_one(folder, full_disk, where):
    full_disk(where)
    with pytest.raises(WriteError, match=r"epoch-000004.*cannot be written \(No space left"):
        checkpoint.save(folder, made(4))
    assert names(folder) == ["epoch-000002", "epoch-000003"]
    assert checkpoint.load(folder, FACTS).state["epochs"] == 3
