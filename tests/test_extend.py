"""What docs/extend.md says: its lines, put where it says, give a variant, a metric and a corpus."""

import re
import shutil
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT, ran, write_tones

from cunet_lib.cli import main

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^(Above|In) `(\w+)` \w+ `(\S+)`:\n\n```python\n(.*?)```", re.M | re.S)


@pytest.fixture
def project(tmp_path):
    """A copy of the project; call it with a section of the page to make its changes."""
    root = tmp_path / "project"
    for name in ("cunet_lib", "rendered_corpus", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "requirements.lock", root)

    def change(section):
        blocks = BLOCK.findall(SECTIONS[section])
        assert blocks
        for place, name, path, lines in blocks:
            source = (root / path).read_text(encoding="utf-8")
            start = re.search(rf"^{name}\b.* = [\[({{]$", source, re.MULTILINE)
            if place == "Above":
                source = (
                    source[: start.start()] + lines.strip() + "\n\n\n" + source[start.start() :]
                )
            else:
                end = re.compile(r"^[\])}]", re.MULTILINE).search(source, start.end()).start()
                source = source[:end] + lines + source[end:]
            (root / path).write_text(source, encoding="utf-8")
        return root

    return change


def run(root, *words, **environment):
    done = ran(sys.executable, *words, cwd=root, timeout=600, PYTHONPATH=root, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_variant_goes_through_the_smoke_study_to_its_tables(project, smoke_study, tmp_path):
    root = project("A variant")
    copy = smoke_study.copy(tmp_path)
    roots = {"CUNET_DATA": copy.data, "CUNET_RESULTS": copy.results}
    for stage in ("03_train_cunet.gated_simple-seed0", "04_evaluate.gated_simple-seed0", "05_plot"):
        trained = 'seeds={"unet":1,"dense_complex":1,"gated_simple":1}'
        words = ("run", stage, "--profile", "smoke", "--overrides", trained)
        run(root, "-m", "cunet_lib.cli", *words, **roots)
    scores = pd.read_csv(copy.folder / "scores" / "scores.csv")
    assert "gated_simple" in set(scores["model"])
    for table in ("models", "training", "scores_overall", "differences"):
        text = (copy.folder / "tables" / f"{table}.md").read_text(encoding="utf-8")
        assert "gated, simple" in text, table
    assert "gated" in (copy.folder / "figures" / "training_curves.svg").read_text(encoding="utf-8")


def test_a_metric_has_its_rows_and_its_heading(project):
    code = (
        "import numpy as np\n"
        "from cunet_lib.core.settings import load_profile\n"
        "from cunet_lib.evaluation import metrics\n"
        "stems = np.random.default_rng(0).normal(size=(4, 20000))\n"
        "rows = metrics.track_rows(stems.sum(axis=0), stems, 0 * stems, load_profile('smoke'))\n"
        "print(rows[rows['metric'] == 'EL'][['target', 'value']].round(1).to_string())\n"
        "print([measure.heading for measure in metrics.FURTHER])\n"
    )
    printed = run(project("A metric"), "-c", code)
    assert [float(x) for x in re.findall(r"-?\d+\.\d$", printed, re.MULTILINE)] == [
        pytest.approx(-6, abs=0.3)
    ] * 4
    assert "Error level" in printed


def test_a_folder_of_stems_with_a_profile_is_a_corpus(roots, monkeypatch, capsys):
    profile = re.search(r"```yaml\n(.*?)```", SECTIONS["A corpus"], re.DOTALL)
    settings = yaml.safe_load(profile[1])
    settings["data"]["validation"] = 1
    settings["data"]["stems"] = {"other": ["other", *settings["data"]["stems"]["other"]]}
    (roots / "mine.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_tones(roots / "songs", train=2, test=1, seconds=1.0, rate=16000)
    for path in (roots / "songs").glob("*/*/other.wav"):
        path.rename(path.with_name("guitar.wav"))
    monkeypatch.setenv("CUNET_MUSDB", str(roots / "songs"))
    assert main(["check", str(roots / "mine.yaml")]) == 0
    told = capsys.readouterr()
    assert "The corpus is in order" in told.out and "train 2 tracks" in told.out and told.err == ""
