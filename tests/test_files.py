"""Files that are written as a whole, and locks."""

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ran, started

from cunet_lib.core import files
from cunet_lib.core.files import WriteError, locked, replacing, write_atomically, write_json
from cunet_lib.core.settings import ConfigError


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (done.append("rename"), replace(path, to))[1]
    )
    write_atomically(tmp_path / "a.csv", "x\n")
    assert done == ["fsync", "rename"]
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_what_was_there(tmp_path):
    path = write_atomically(tmp_path / "a.csv", "before\n")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_killed_writer_leaves_nothing_that_is_found_as_a_result(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from cunet_lib.core import files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path(sys.argv[1]), 'half')\n"
    )
    path = write_atomically(tmp_path / "unet-seed0.csv", "whole\n")
    done = ran(sys.executable, "-c", code, path)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.glob("*-seed*.csv")) == [path]
    assert path.read_text() == "whole\n"
    files.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["content", "rename", "name"])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, full_disk, where):
    path = write_json(tmp_path / "run.json", {"before": 1})
    before = path.read_bytes()
    full_disk(where)
    with pytest.raises(WriteError) as caught:
        write_json(path, {"after": 2})
    message = str(caught.value)
    assert str(path) in message and "No space left" in message and "free some space" in message
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in message
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_short_write_without_a_reason_is_told_on_a_full_disk(tmp_path, monkeypatch):
    """``numpy.save`` says only how many bytes it wrote."""
    usage = files.shutil.disk_usage(tmp_path)
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))

    def write():
        with replacing(path):
            raise OSError("100 requested and 50 written")

    with pytest.raises(OSError, match="50 written") as caught:
        write()
    assert not isinstance(caught.value, WriteError)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    with pytest.raises(WriteError, match=r"a\.npy cannot be written .*free some space"):
        write()
    assert np.load(path).shape == (3,)


def test_no_permission_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "locked" / "table.csv"
    write_atomically(path, "before\n")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path.parent / ".temporary"))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(WriteError, match=r"table\.csv cannot be written .*permissions"):
        write_atomically(path, "after\n")
    assert path.read_text() == "before\n"


def test_an_error_of_reading_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.csv"):
        (tmp_path / "nothing").read_bytes()
    assert not isinstance(caught.value, WriteError)
    with pytest.raises(PermissionError) as caught, replacing(tmp_path / "a.csv"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/mixture.wav")
    assert not isinstance(caught.value, WriteError)


# ---------------------------------------------------------------------------------------- locks

HOLD = (
    "import sys, time; from pathlib import Path; from cunet_lib.core.files import locked\n"
    "with locked(Path(sys.argv[1]), 'busy'):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock ``.lock`` of a folder."""
    process = started(sys.executable, "-c", HOLD, tmp_path / ".lock")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_holder_is_refused_in_one_sentence(holder, tmp_path):
    refused = pytest.raises(ConfigError, match=r"^Someone else is at it\.$")
    with refused, locked(tmp_path / ".lock", "Someone else is at it."):
        pass


def test_a_killed_holder_gives_the_lock_back(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    began = time.monotonic()
    with locked(tmp_path / ".lock", "busy", seconds=10):
        assert time.monotonic() - began < 5
    with locked(tmp_path / ".lock", "busy"):  # given back, and taken again
        pass


def test_runs_on_a_cluster_wait_longer_for_a_lock(holder, tmp_path, monkeypatch):
    """A lost machine's lock may live on for a while."""
    monkeypatch.setenv("CUNET_LOCK_SECONDS", "30")
    threading.Timer(0.5, holder.kill).start()
    with locked(tmp_path / ".lock", "busy", seconds=0.0):
        assert holder.wait(10) != 0
