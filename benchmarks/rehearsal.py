"""MUSDB18 at full size, rehearsed: what each stage of profile ``musdb18`` takes beside its plan.

The tree has MUSDB18-HQ's layout, number and length of tracks, and names as odd as its own. Its
songs are a few rendered ones, repeated and linked, so it is made in minutes and takes little space.
Trainings take two steps. What was found goes to ``results/bench/musdb18.md``. Run it on a machine
that does nothing else: ``python -m benchmarks.rehearsal --folder FOLDER``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import soundfile

from benchmarks.bench import FOLDER
from cunet_lib.core.files import write_atomically
from cunet_lib.core.hardware import cores
from cunet_lib.core.settings import ROOT, Profile, load_profile
from cunet_lib.preprocess.check import RATE
from cunet_lib.preprocess.tracks import STEMS
from cunet_lib.workflow import plan
from cunet_lib.workflow.stages import edges, parse_stage
from rendered_corpus.render import render_corpus

OVERRIDES = "train.steps_per_epoch=2 train.unet_epochs=1 train.cunet_epochs=1"

TRACKS = {"train": 100, "test": 50}

SECONDS = (150, 200, 230, 250, 280, 320)
"""Lengths of the songs: MUSDB18's tracks last four minutes on average."""


def make_tree(folder: Path, validation: tuple[str, ...]) -> None:
    """A folder like MUSDB18-HQ; the files of tracks that sound alike are links to one another."""
    songs = folder.with_name("songs")
    render_corpus(songs, train_tracks=len(SECONDS), test_tracks=1, seconds=30.0, seed=0, workers=2)
    names = {
        subset: [f"Motörhead’s {n:03} - It's {subset}; 100% ¿Qué? & Łódź" for n in range(count)]
        for subset, count in TRACKS.items()
    }
    names["train"][: len(validation)] = validation
    first: dict[tuple[int, str], Path] = {}
    rendered = sorted((songs / "train").iterdir())
    for subset, each in names.items():
        for place, name in enumerate(each):
            track, kind = folder / subset / name, place % len(SECONDS)
            track.mkdir(parents=True, exist_ok=True)
            for stem in STEMS:
                path = track / f"{stem}.wav"
                if path.exists():
                    pass
                elif (kind, stem) in first:
                    path.hardlink_to(first[kind, stem])
                else:
                    audio, _ = soundfile.read(rendered[kind] / f"{stem}.wav", dtype="int16")
                    whole = np.resize(audio, (SECONDS[kind] * RATE, audio.shape[1]))
                    soundfile.write(path, whole, RATE, subtype="PCM_16")
                first.setdefault((kind, stem), path)


def run(stage: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak bytes (all its processes) of one stage.

    Raises
    ------
    SystemExit
        If it fails.
    """
    words = ("run", stage, "--profile", "musdb18", "--overrides", OVERRIDES)
    began, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "cunet_lib.cli", *words]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        while process.poll() is None:
            used = 0
            family = psutil.Process(process.pid)
            for each in (family, *family.children(recursive=True)):
                try:
                    # Pages that processes share count once.
                    used += each.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, used)
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{stage} failed")
    return time.perf_counter() - began, peak


def used(settings: Profile) -> int:
    """Bytes on the disk below a profile's folders."""
    folders = (settings.paths.data, settings.paths.results)
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(512 * path.stat().st_blocks for path in files)


def main() -> None:
    """Make the tree, plan, run every stage, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the tree and the results")
    folder = parser.parse_args().folder.resolve()
    os.environ |= {"CUNET_MUSDB": str(folder / "MUSDB18 HQ")}
    os.environ |= {"CUNET_DATA": str(folder / "data"), "CUNET_RESULTS": str(folder / "results")}
    settings = load_profile("musdb18", OVERRIDES)
    make_tree(folder / "MUSDB18 HQ", settings.data.validation)
    music, corpus = plan.lengths(settings)
    longest = max(map(max, music.values()))
    parts = plan.estimate(settings, music, corpus, plan.calibrate(settings, longest))
    print(plan.text(settings, parts, music, 1), flush=True)
    rows = []
    for stage in ["00_corpus", *sorted({name for name, _ in edges(settings, "05_plot")})]:
        before = used(settings)
        seconds, peak = run(stage, dict(os.environ))
        rows.append((parse_stage(stage).notebook, seconds, peak, used(settings) - before))
    found = pd.DataFrame(rows, columns=["stage", "seconds", "memory", "disk"])
    found = found.groupby("stage").agg({"seconds": "sum", "memory": "max", "disk": "sum"})
    lines = ["| stage | time | planned | peak memory | planned | disk | planned |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for part in parts:
        row = found.loc[part.name]
        cells = [part.name, f"{row['seconds'] / 60:.1f} min", f"{part.seconds / 60:.1f} min"]
        for column in ("memory", "disk"):
            cells += [plan.size(row[column]), plan.size(getattr(part, column))]
        lines.append(f"| {' | '.join(cells)} |")
    tracks = sum(map(len, music.values()))
    hours = sum(map(sum, music.values())) / 3600
    lines += [
        "",
        f"{tracks} tracks, {hours:.1f} hours of music, {cores()} cores, one stage at a time.",
    ]
    lines += ["Trainings take two steps and one validation. Memory counts mapped pages of the"]
    lines += ["store, too; the system takes them back when it needs them."]
    print(write_atomically(FOLDER / "musdb18.md", "\n".join(lines) + "\n").read_text())


if __name__ == "__main__":
    main()
