"""Kill ``make reproduce PROFILE=smoke`` again and again; the results must be as if never killed.

A fixed plan from a seed, bounded by a number of kills and a time for each run:

1. Two clones of this checkout run the study undisturbed, each on its own. Their scores must be the
   same, byte for byte; how long each stage takes is read from the first. Trainings have a few more
   epochs there than the profile says, so that there is time between the first and the last.
2. A third study is killed (SIGKILL to make and all its jobs, or SIGTERM, or SIGINT, as Ctrl-C sends
   it) within stages drawn from the seed: corpus and preprocessing, trainings, evaluations, plotting
   and report. Trainings are struck at any time, once an epoch is kept, and when they are finished
   and their notebook is not. Each time the same command is started again, and at last left to
   finish. What was finished is never done again, so all kills together cost little more than one
   study.
3. Scores, tables and training histories of all three are compared, save for times.
4. The gallery of bad input is shown to the library (``tests/test_bad_input.py``), and counted.

``make torture`` runs it and writes ``results/reliability/reliability.{json,md}``. With
``--folder`` it works there, and goes on there when it was stopped itself.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cunet_lib.core.files import write_atomically, write_json
from cunet_lib.core.hardware import cores
from cunet_lib.core.settings import ROOT
from cunet_lib.train.checkpoint import REUSED
from cunet_lib.workflow.stages import run_name

PHASES = {
    "preprocessing": (r"0[01]_.*", 0.2),
    "training": (r"0[23]_.*", 0.4),
    "evaluation": (r"04_.*", 0.25),
    "plotting": (r"05_.*|report", 0.15),
}
"""Names of a phase's stages, and its share of the kills; in the order of the study."""

EPOCHS = 6
"""Of every training in a clone; the profile's second and last takes half a second."""

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Dealt in turn, so that half of the kills cannot be caught, to moments in any order."""

ANY = "at any time"

SIGNS = {"after an epoch": "checkpoint/epoch-*.npz", "after training": "run.json", ANY: None}
"""Moments for the kills of trainings, dealt in turn, and the new file in the run folder which shows
that one has come."""

SOON = 1.0
"""Seconds after such a sign within which a kill falls; five epochs take twice as long."""

PROFILE = Path("notebooks/profiles/smoke.yaml")

OUTPUT = ROOT / "results" / "reliability"

LIMIT, PATIENCE = 1800, 60
"""Seconds that a whole run may take, and one that was told to stop."""


class Study:
    """One study of the smoke profile, from a checkout of its own, in folders of its own."""

    def __init__(self, checkout: Path, root: Path):
        self.checkout = checkout
        self.root = root
        self.results = root / "results" / "smoke"
        self.log = root / "output.txt"

    def start(self) -> subprocess.Popen:
        """Start ``make reproduce``; its output is added to a file."""
        self.root.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        roots = {"CUNET_DATA": f"{self.root}/data", "CUNET_RESULTS": f"{self.root}/results"}
        with self.log.open("ab") as output:
            return subprocess.Popen(
                ["make", "reproduce", "PROFILE=smoke"],
                cwd=self.checkout,
                env={**kept, **roots, "CUNET_PYTHON": sys.executable},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell hands programs in its background a Ctrl-C that is ignored, for good.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def said(self, since: int = 0) -> str:
        """Output from a position of the file on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().decode("utf-8", "replace")

    def finish(self, *, limit: float) -> float:
        """Run to the end; seconds."""
        began = time.monotonic()
        process = self.start()
        try:
            code = process.wait(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        if code:
            raise SystemExit(f"make failed ({code}); see {self.log}.")
        return time.monotonic() - began

    def stages(self) -> dict[str, float]:
        """Seconds of each stage, in the order in which they began."""
        text = self.said()
        names = [*dict.fromkeys(re.findall(r"^(\S+) \| started$", text, re.MULTILINE)), "report"]
        seconds = dict.fromkeys(names, 3.0)
        for name, minutes, rest in re.findall(
            r"^(\S+) \| done in (?:(\d+) min )?(\d+) s$", text, re.MULTILINE
        ):
            seconds[name] = 60.0 * int(minutes or 0) + int(rest)
        return seconds

    def done(self, stage: str) -> bool:
        """Whether a stage has its result."""
        if stage == "report":
            return (self.results / "report" / "index.html").is_file()
        return (self.results / "notebooks" / f"{stage}.ipynb").is_file()

    def locked(self) -> bool:
        """Whether something of a run is still going on."""
        lock = self.results / ".lock"
        if not lock.exists():
            return False
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def signs(self, stage: str, when: str) -> set[Path]:
        """Files which show that a training was at such a moment, now or earlier."""
        if SIGNS[when] is None:
            return set()
        return set((self.results / "runs" / run_name(stage)).glob(SIGNS[when]))

    def strike(
        self, stage: str, when: str, delay: float, number: signal.Signals, *, limit: float
    ) -> dict:
        """Start, wait for a stage's moment, then so many seconds more, kill; what happened.

        Should the stage be over sooner, as a training that only had to go on, it is killed then.
        """
        since = self.log.stat().st_size if self.log.exists() else 0
        earlier = self.signs(stage, when)
        process = self.start()
        began, come = time.monotonic(), None
        try:
            while process.poll() is None:
                now, said = time.monotonic(), self.said(since)
                begun = re.search(f"^{re.escape(stage)} \\| ", said, re.MULTILINE)
                if come is None and begun and (when == ANY or self.signs(stage, when) - earlier):
                    come = now
                if (come is not None and now - come >= delay) or f"\n{stage} | done in" in said:
                    break
                if come is None and now - began > limit:
                    raise SystemExit(
                        f"The moment for {stage} ({when}) has not come within {limit:.0f} s; see "
                        f"{self.log}."
                    )
                time.sleep(0.05)
            else:
                if process.returncode:
                    raise SystemExit(f"make failed ({process.returncode}); see {self.log}.")
                after = round(time.monotonic() - began, 1)
                return {"stage": stage, "when": when, "signal": None, "after": after, "exit": 0}
            struck = time.monotonic()
            os.killpg(process.pid, number)
            code = process.wait(timeout=PATIENCE)
            # Make ends at once; its jobs take their time to put things in order.
            while self.locked():
                if time.monotonic() - struck > PATIENCE:
                    raise SystemExit(f"Jobs still run {PATIENCE} s after {number.name}.")
                time.sleep(0.02)
            ended = time.monotonic() - struck
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
        lines = self.said(since).splitlines()
        return {
            "stage": stage,
            "when": when,
            "signal": number.name,
            "after": round(struck - began, 1),
            "ended_in": round(ended, 2),
            "exit": code,
            # What could be told was told; SIGKILL leaves no time for words.
            "told": sum(" | Stopped; " in line for line in lines),
            "tracebacks": sum("Traceback" in line for line in lines),
        }


def planned(stages: Mapping[str, float], *, kills: int, seed: int) -> list[dict]:
    """Moments of the kills: stage, when, seconds after that and signal; in the study's order."""
    rng = random.Random(seed)
    groups = {
        phase: [name for name in stages if re.fullmatch(pattern, name)]
        for phase, (pattern, _) in PHASES.items()
    }
    shares = {phase: share for phase, (_, share) in PHASES.items()}
    # One in every phase, where there are as many kills; the rest by the largest shortfall.
    counts = dict.fromkeys(PHASES, int(kills >= len(PHASES)))
    while sum(counts.values()) < kills:
        phase = max(shares, key=lambda each: shares[each] * kills - counts[each])
        counts[phase] += 1
    signals = _dealt(rng, [number.name for number in SIGNALS], kills)
    moments = []
    for phase, names in groups.items():
        # Every stage once before any is struck twice.
        times, rest = divmod(counts[phase], len(names))
        chosen = sorted(names * times + rng.sample(names, rest), key=list(stages).index)
        whens = _dealt(rng, list(SIGNS) if phase == "training" else [ANY], len(chosen))
        for name, when in zip(chosen, whens, strict=True):
            delay = rng.uniform(0.02, 0.98) * (stages[name] if when == ANY else SOON)
            moment = {"stage": name, "when": when, "delay": delay, "signal": signals.pop()}
            moments.append(moment)
    return moments


def _dealt(rng: random.Random, kinds: Sequence[str], number: int) -> list[str]:
    """So many of some kinds: each as often as the others, in any order."""
    deck = [kinds[place % len(kinds)] for place in range(number)]
    rng.shuffle(deck)
    return deck


def clone(folder: Path) -> Path:
    """A clone of this checkout's last commit, with longer trainings."""
    if not folder.is_dir():
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    profile = (folder / PROFILE).read_text(encoding="utf-8")
    longer = re.sub(r"(?<=_epochs: )\d+", str(EPOCHS), profile)
    if longer != profile:  # written once: make goes by its time
        write_atomically(folder / PROFILE, longer)
    return folder


def differences(one: Study, other: Study) -> list[str]:
    """Every result that is not the same in both, by name."""
    found = []
    for folder in ("scores", "scores/excerpt", "scores/ablation"):
        found += _unequal(one, other, f"{folder}/*.csv", lambda path: path.read_bytes())
    # Tables with times of their own are compared without them.
    for pattern in ("tables/*.csv", "runs/*/history.csv"):
        found += _unequal(one, other, pattern, _timeless)
    left = [path for path in other.results.rglob(".*partial*") if path.is_file()]
    left += other.results.glob("runs/*/checkpoint")
    return found + [f"left behind: {path.relative_to(other.results)}" for path in left]


def _unequal(one: Study, other: Study, pattern: str, read) -> list[str]:
    names = {
        path.relative_to(study.results)
        for study in (one, other)
        for path in study.results.glob(pattern)
    }
    found = [] if names else [f"nothing is named {pattern}"]
    for name in sorted(names):
        paths = [study.results / name for study in (one, other)]
        if not all(path.exists() for path in paths):
            found.append(f"only in one: {name}")
        elif read(paths[0]) != read(paths[1]):
            found.append(f"differs: {name}")
    return found


def _timeless(path: Path) -> str:
    times = r"(?i)second|minute|patches/s|per_second"
    return pd.read_csv(path).loc[:, lambda table: ~table.columns.str.contains(times)].to_csv()


def resumed(study: Study) -> dict[str, int]:
    """How often each training went on after a kill."""
    records = sorted(study.results.glob("runs/*/run.json"))
    return {path.parent.name: json.loads(path.read_text("utf-8"))["resumed"] for path in records}


def reused(study: Study) -> dict[str, int]:
    """How often each stage found its training finished by an earlier start, and used it."""
    lines = re.findall(rf"^(\S+) \| {re.escape(REUSED)}$", study.said(), re.MULTILINE)
    return dict(Counter(lines))


def bad_input() -> dict:
    """Show the gallery of bad input to the library; cases by kind, and the tests that failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rpfE", "tests/test_bad_input.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(test_(\w+)\S*)", done.stdout, re.MULTILINE)
    failed = [test for outcome, test, _ in outcomes if outcome != "PASSED"]
    if not outcomes or (done.returncode and not failed):
        raise SystemExit(f"The gallery could not be shown:\n{done.stdout[-2000:]}{done.stderr}")
    cases = Counter(kind.replace("_", " ") for _, _, kind in outcomes)
    return {"cases": dict(cases), "failed": failed}


def main() -> int:
    """Run the plan; exit status 1 if anything differs, hangs or fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: temporary)")
    options = parser.parse_args()
    if options.kills < 0:
        parser.error("--kills must be at least 0")
    # Told by a scheduler to stop: end what was started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cunet-torture-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        record = torture(folder, kills=options.kills, seed=options.seed, limit=LIMIT)
        record["bad_input"] = bad_input()
    write_json(OUTPUT / "reliability.json", record)
    text = report(record)
    write_atomically(OUTPUT / "reliability.md", text)
    print(text)
    return 1 if failed(record) else 0


def failed(record: dict) -> bool:
    """Whether anything was not as it must be."""
    return bool(
        record["differences"]
        or record["clones_differ"]
        or any(strike.get("tracebacks") for strike in record["strikes"])
        or record["bad_input"]["failed"]
    )


def torture(folder: Path, *, kills: int, seed: int, limit: float) -> dict:
    """Run the plan in a folder and return its record; go on where an earlier call was stopped."""
    words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    known = _Notes(folder / "notes.json")
    plan = {"kills": kills, "seed": seed, "commit": commit}
    if "plan" not in known:
        known["plan"] = plan
    if known["plan"] != plan:
        raise SystemExit(f"{folder} holds the work of another plan or commit; delete it first.")
    one, two = clone(folder / "clone-1"), clone(folder / "clone-2")
    undisturbed = Study(one, folder / "undisturbed")
    killed = Study(two, folder / "killed")
    again = Study(two, folder / "again")
    for name, study in (("undisturbed", undisturbed), ("again", again)):
        if name not in known:
            print(f"{name} run", flush=True)
            known[name] = round(study.finish(limit=limit), 1)
            print(f"{name} run: {known[name]:.0f} s", flush=True)
    stages = undisturbed.stages()
    moments = planned(stages, kills=kills, seed=seed)
    strikes = known.get("strikes", [])
    for moment in moments[len(strikes) :]:
        later = [*stages][[*stages].index(moment["stage"]) :]
        # A stage that another kill let finish is past; the next one takes the blow.
        stage = next((each for each in later if not killed.done(each)), later[-1])
        when = moment["when"] if run_name(stage) else ANY
        delay = min(moment["delay"], stages[stage])
        began = time.monotonic()
        number = signal.Signals[moment["signal"]]
        strikes = [*strikes, killed.strike(stage, when, delay, number, limit=limit)]
        known["strikes"] = strikes
        known["killed"] = known.get("killed", 0.0) + time.monotonic() - began
        print(f"kill {len(strikes)}/{kills}: {strikes[-1]}", flush=True)
    if "finished" not in known:
        known["killed"] = known.get("killed", 0.0) + killed.finish(limit=limit)
        known["finished"] = True
    return {
        "seed": seed,
        "kills": kills,
        "cores": cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "undisturbed_seconds": known["undisturbed"],
        "killed_seconds": round(known["killed"], 1),
        "stages": stages,
        "resumed": resumed(killed),
        "reused": reused(killed),
        "strikes": strikes,
        "differences": differences(undisturbed, killed),
        "clones_differ": differences(undisturbed, again),
    }


def report(record: dict) -> str:
    """The outcome as Markdown."""
    strikes = [strike for strike in record["strikes"] if strike["signal"]]
    counts = Counter(strike["signal"] for strike in strikes)
    signals = ", ".join(f"{counts[name]} {name}" for name in ("SIGKILL", "SIGTERM", "SIGINT"))
    phases = ", ".join(
        f"{phase} {sum(bool(re.fullmatch(pattern, strike['stage'])) for strike in strikes)}"
        for phase, (pattern, _) in PHASES.items()
    )
    cases, failures = (record["bad_input"][part] for part in ("cases", "failed"))
    stops = [strike["ended_in"] for strike in strikes if strike["signal"] == "SIGINT"]
    rows = [
        ("Kills", f"{len(strikes)} ({signals})"),
        ("Kills by phase", phases),
        ("Results that differ from an undisturbed run", ", ".join(record["differences"]) or "none"),
        ("Trainings that went on from a checkpoint", sum(record["resumed"].values())),
        ("Finished trainings used again", sum(record["reused"].values())),
        ("Ctrl-C to the end", f"at most {max(stops):.1f} s" if stops else "not tried"),
        ("Undisturbed run", f"{record['undisturbed_seconds']:.0f} s"),
        ("Killed run, all its starts together", f"{record['killed_seconds']:.0f} s"),
        ("Results that differ between two clones", ", ".join(record["clones_differ"]) or "none"),
        ("Bad inputs shown", sum(cases.values())),
        ("Bad inputs without a clean refusal", len(failures)),
    ]
    lines = [
        "# Reliability of `make reproduce`",
        "",
        f"Profile `smoke` with {EPOCHS} epochs a training, {record['kills']} kills planned from "
        f"seed {record['seed']}, {record['cores']} cores, {record['machine']}, Python "
        f"{record['python']}. Each kill was followed by the same command again. Made by "
        "`make torture`.",
        "",
        "| what | outcome |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "## Every kill",
        "",
        "| stage | moment | signal | after (s) | ended in (s) | stages that told what is kept |",
        "|---|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {strike['stage']} | {strike['when']} | {strike['signal'] or 'none: it had finished'} "
        f"| {strike['after']} | {strike.get('ended_in', '')} | {strike.get('told', '')} |"
        for strike in record["strikes"]
    ]
    lines += ["", "## Bad input", "", "| kind | cases |", "|---|---:|"]
    lines += [f"| {kind} | {number} |" for kind, number in sorted(cases.items())]
    return "\n".join(lines) + "\n"


class _Notes(dict):
    """What is done so far, kept in a file, so that this program can be killed too."""

    def __init__(self, path: Path):
        super().__init__(json.loads(path.read_text("utf-8")) if path.is_file() else {})
        self._path = path

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        write_json(self._path, dict(self))


if __name__ == "__main__":
    sys.exit(main())
