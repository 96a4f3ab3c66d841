"""The plan of kills, and how its outcome is told; a small one runs in ``make torture KILLS=2``."""

import json
import re
import shutil
import signal
import subprocess

import pytest
from conftest import ROOT, git
from test_stages import PLAN

from benchmarks import torture
from cunet_lib.core.settings import load_profile
from cunet_lib.train import checkpoint

STAGES = {**dict.fromkeys(PLAN, 12.0), "report": 3.0}


def phase_of(stage):
    return next(phase for phase, (names, _) in torture.PHASES.items() if re.fullmatch(names, stage))


@pytest.mark.parametrize("kills", [0, 1, 2, 4, 20, 57])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plan_follows_from_the_seed_and_reaches_every_phase(kills, seed):
    plan = torture.planned(STAGES, kills=kills, seed=seed)
    assert plan == torture.planned(STAGES, kills=kills, seed=seed)
    assert len(plan) == kills
    phases = [phase_of(moment["stage"]) for moment in plan]
    assert phases == sorted(phases, key=list(torture.PHASES).index)
    if kills >= 4:
        assert set(phases) == set(torture.PHASES)
        signals = [moment["signal"] for moment in plan]
        assert signals.count("SIGKILL") >= kills // 2
        assert {"SIGINT", "SIGTERM"} <= set(signals)
    assert all(0 < moment["delay"] < STAGES[moment["stage"]] for moment in plan)
    assert all(moment["delay"] < torture.SOON for moment in plan if moment["when"] != torture.ANY)


@pytest.mark.parametrize("seed", range(5))
def test_trainings_are_struck_at_each_kind_of_moment_and_none_twice_before_all_are(seed):
    plan = torture.planned(STAGES, kills=20, seed=seed)
    struck = [moment["stage"] for moment in plan if phase_of(moment["stage"]) == "training"]
    assert len(struck) == 8 and set(struck) == {each for each in PLAN if each[:3] in ("02_", "03_")}
    whens = [moment["when"] for moment in plan if moment["stage"] in struck]
    assert {when: whens.count(when) for when in torture.SIGNS} == {
        "after an epoch": 3,
        "after training": 3,
        torture.ANY: 2,
    }
    assert {moment["when"] for moment in plan if moment["stage"] not in struck} == {torture.ANY}


class Fake(torture.Study):
    """A study whose make is a line of shell."""

    script = ""

    def start(self):
        self.root.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            return subprocess.Popen(
                ["bash", "-c", self.script],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture
def study(tmp_path):
    return Fake(tmp_path, tmp_path / "study")


@pytest.fixture
def strike(study):
    """Strike a study that is a line of shell."""

    def struck(script, *, stage, when=torture.ANY, delay=0.1, number=signal.SIGKILL, limit=20):
        study.script = script
        return study.strike(stage, when, delay, number, limit=limit)

    return struck


EVALUATED, TRAINED = "04_evaluate.a-seed0", "02_train_unet.bass-seed0"


def test_a_strike_waits_for_its_stage_and_reports_what_was_told(strike):
    script = f"trap 'echo \"{EVALUATED} | Stopped; nothing is lost.\"; exit 130' INT; "
    script += f"echo '{EVALUATED} | started'; sleep 60 & wait"
    told = strike(script, stage=EVALUATED, delay=0.2, number=signal.SIGINT)
    assert (told["signal"], told["exit"], told["told"]) == ("SIGINT", 130, 1)
    assert told["tracebacks"] == 0 and told["ended_in"] < 20


@pytest.mark.parametrize(
    ("when", "name"),
    [("after an epoch", "checkpoint/epoch-000001.npz"), ("after training", "run.json")],
)
def test_a_strike_waits_for_its_moment_in_a_training(study, strike, when, name):
    run = study.results / "runs" / "unet_bass-seed0"
    result(study, "runs/unet_bass-seed0/checkpoint/epoch-000000.npz", "of an earlier start")
    script = f"echo '{TRAINED} | started'; sleep 0.7; touch {run / name}; sleep 60; "
    told = strike(f"{script} echo '{TRAINED} | done in 60 s'", stage=TRAINED, when=when)
    assert told["when"] == when and 0.8 <= told["after"] < 20
    assert (run / name).exists()


def test_a_moment_that_does_not_come_ends_the_plan_or_the_stage_does(strike):
    moment = {"stage": TRAINED, "when": "after training"}
    with pytest.raises(SystemExit, match=r"bass-seed0 \(after training\) has not come within 1 s"):
        strike(f"echo '{TRAINED} | started'; sleep 60", limit=1, **moment)
    script = f"echo '{TRAINED} | started'; echo; echo '{TRAINED} | done in 0 s'; sleep 60"
    assert strike(script, delay=5, **moment)["after"] < 5


def test_what_does_not_listen_had_ended_or_fails_by_itself(strike):
    deaf = strike("trap '' INT TERM; echo '05_plot | started'; sleep 60", stage="05_plot")
    assert deaf["exit"] == -signal.SIGKILL
    ended = strike("echo '05_plot | started'", stage="05_plot", delay=5)
    assert ended["signal"] is None and ended["exit"] == 0
    with pytest.raises(SystemExit, match=r"make failed \(3\)"):
        strike("echo '05_plot | started'; exit 3", stage="05_plot", delay=5)


def test_stages_and_trainings_used_again_are_read_from_the_output(study):
    study.root.mkdir()
    study.log.write_text(
        "00_corpus | started\n00_corpus | 3 songs\n00_corpus | done in 9 s\n"
        f"03_train_cunet.a-seed0 | {checkpoint.REUSED}\n"
        f"02_train_unet.bass-seed0 | {checkpoint.REUSED}\n"
        f"03_train_cunet.a-seed0 | {checkpoint.REUSED}\n"
        "03_train_cunet.b-seed0 | goes on after epoch 1, where it was stopped\n"
        "05_plot | started\n05_plot | done in 1 min 4 s\n"
    )
    assert study.stages() == {"00_corpus": 9.0, "05_plot": 64.0, "report": 3.0}
    assert torture.reused(study) == {"03_train_cunet.a-seed0": 2, "02_train_unet.bass-seed0": 1}


def result(study, name, text):
    path = study.results / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def whole(study):
    for name in ("scores/a.csv", "scores/excerpt/a.csv", "scores/ablation/a.csv"):
        result(study, name, "model,value\na,1.5\n")
    for name in ("tables/training.csv", "runs/a-seed0/history.csv"):
        result(study, name, "model,loss,seconds\na,1.5,7\n")


def test_every_difference_is_named_save_times(tmp_path):
    one, other = (torture.Study(tmp_path, tmp_path / name) for name in "ab")
    whole(one)
    whole(other)
    result(other, "tables/training.csv", "model,loss,seconds\na,1.5,9\n")
    assert torture.differences(one, other) == []
    result(other, "scores/a.csv", "model,value\na,1.50\n")
    result(other, "tables/training.csv", "model,loss,seconds\na,1.6,7\n")
    result(other, "tables/more.csv", "model\na\n")
    result(other, "runs/a-seed0/checkpoint/epoch-1.npz", "")
    result(other, "runs/.x.partial-1", "")
    assert torture.differences(one, other) == [
        "differs: scores/a.csv",
        "only in one: tables/more.csv",
        "differs: tables/training.csv",
        "left behind: runs/.x.partial-1",
        "left behind: runs/a-seed0/checkpoint",
    ]


RECORD = json.loads((torture.OUTPUT / "reliability.json").read_text(encoding="utf-8"))


def test_committed_page_is_that_of_the_committed_record():
    page = torture.OUTPUT / "reliability.md"
    assert page.read_text(encoding="utf-8") == torture.report(RECORD)


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ({}, False),
        ({"differences": ["differs: scores/a.csv"]}, True),
        ({"clones_differ": ["differs: scores/a.csv"]}, True),
        ({"bad_input": {"cases": {}, "failed": ["test_x"]}}, True),
        ({"strikes": [{"stage": "05_plot", "signal": "SIGINT", "tracebacks": 1}]}, True),
    ],
)
def test_anything_amiss_fails(change, bad):
    assert torture.failed({**RECORD, **change}) is bad


def test_trainings_in_a_clone_have_more_epochs_and_the_profile_is_written_once(toy):
    toy("-n ''")
    folder = torture.clone(torture.ROOT.parent / "clone")
    profile = folder / torture.PROFILE
    train = load_profile(str(profile)).train
    assert train.unet_epochs == train.cunet_epochs == torture.EPOCHS
    before = profile.stat().st_mtime_ns
    assert torture.clone(folder) == folder and profile.stat().st_mtime_ns == before


TOY = r"""
set -eu
results=$CUNET_RESULTS/smoke
mkdir -p $results/notebooks $results/scores/excerpt $results/scores/ablation $results/tables
mkdir -p $results/runs/a-seed0 $results/report
echo start >> $CUNET_RESULTS/starts
for stage in 00_corpus 02_train_unet.bass-seed0 04_evaluate.unet-seed0 05_plot; do
  [ ! -e $results/notebooks/$stage.ipynb ] || continue
  echo "$stage | started"
  sleep 0.3
  touch $results/notebooks/$stage.ipynb
  echo "$stage | done in 1 s"
done
echo "report | web pages from the results"
sleep 0.2
[ VERDICT ] || echo "model,value" > $results/scores/a.csv
for name in scores/excerpt/a scores/ablation/a tables/a runs/a-seed0/history; do
  echo "model,value" > $results/$name.csv
done
printf '{"resumed": 1}' > $results/runs/a-seed0/run.json
touch $results/report/index.html
"""
"""A study of seconds; its scores differ if VERDICT holds."""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A checkout whose `make reproduce` takes seconds; a function that says what goes wrong."""
    root = tmp_path / "toy"
    root.mkdir()
    monkeypatch.setattr(torture, "ROOT", root)

    def write(verdict):
        (root / torture.PROFILE).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / torture.PROFILE, root / torture.PROFILE)
        (root / "study.sh").write_text(TOY.replace("VERDICT", verdict))
        (root / "Makefile").write_text("reproduce:\n\t@bash study.sh\n")
        for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "toy")):
            git(root, *words)

    return write


def test_whole_plan_on_a_toy_study(toy, tmp_path):
    toy("-n ''")
    record = torture.torture(tmp_path / "work", kills=4, seed=0, limit=60)
    assert record["differences"] == record["clones_differ"] == []
    assert {phase_of(strike["stage"]) for strike in record["strikes"]} == set(torture.PHASES)
    assert len(record["strikes"]) == 4 and record["resumed"] == {"a-seed0": 1}
    assert record["reused"] == {}
    starts = (tmp_path / "work" / "killed" / "results" / "starts").read_text().splitlines()
    assert len(starts) == 5
    # Started again, it knows what it has done.
    again = torture.torture(tmp_path / "work", kills=4, seed=0, limit=60)
    assert again == record
    with pytest.raises(SystemExit, match="another plan"):
        torture.torture(tmp_path / "work", kills=5, seed=0, limit=60)


def test_a_study_that_kills_change_is_found_out(toy, tmp_path):
    toy("$(wc -l < $CUNET_RESULTS/starts) -gt 1")
    record = torture.torture(tmp_path / "work", kills=1, seed=0, limit=60)
    assert record["differences"] == ["only in one: scores/a.csv"]
    assert torture.failed({**RECORD, **record}) and record["clones_differ"] == []
