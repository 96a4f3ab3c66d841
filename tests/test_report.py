"""Tables, figures, manifest and verification, on made-up results of a whole study."""

import ast
import getpass
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
from test_webpage import Page

from cunet_lib.core import settings as config
from cunet_lib.core.files import write_atomically
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.metrics import SDR_V3
from cunet_lib.report import architecture as drawing
from cunet_lib.report import figures, protocols, tables, webpage
from cunet_lib.report import records as results
from cunet_lib.report import verify as report

NOTEBOOK = nbformat.read(config.ROOT / "notebooks" / "05_plot.ipynb", as_version=4)

SYSTEMS = {
    "mixture": -6.0,
    "unet": 6.0,
    "dense_simple": 4.6,
    "dense_complex": 6.2,
    "cnn_simple": 4.3,
    "cnn_complex": 5.6,
    "ideal_ratio_mask": 10.5,
}
PAPER = {
    "unet": (39_305_300, 39_293_260),
    "dense_simple": (9_848_497, 9_844_847),
    "dense_complex": (12_165_445, 12_159_875),
    "cnn_simple": (9_837_905, 9_834_703),
    "cnn_complex": (10_419_925, 10_416_275),
}
UNITS = {
    ("dense", "simple"): (16, 64, 256),
    ("dense", "complex"): (16, 256, 1024),
    ("cnn", "simple"): (16, 32, 64),
    ("cnn", "complex"): (32, 64, 256),
}


def paper_table():
    """What models.parameter_table() gives."""
    rows = [(name, config.PAPER_NAMES[name], *counts) for name, counts in PAPER.items()]
    return pd.DataFrame(rows, columns=["model", "paper_name", "parameters", "trainable"])


def block(name, part, kind, inputs, outputs, **facts):
    return {
        "name": name,
        "part": part,
        "type": kind,
        "kernel": None,
        "stride": None,
        "input_shape": inputs,
        "output_shape": outputs,
        "normalization": False,
        "dropout": 0.0,
        "film": None,
        "activation": None,
        "skip_from": None,
        **facts,
    }


def architecture(settings, model):
    """What models.describe() gives, without building a model."""
    bins, frames, _ = settings.patch_shape
    blocks, filters = settings.model.blocks, settings.model.filters
    channels = [filters * 2**place for place in range(blocks)]
    rows, film = [], None
    if model in config.VARIANTS:
        control, film = model.split("_")
        shape = [4] if control == "dense" else [4, 1]
        for place, units in enumerate(UNITS[control, film]):
            out = [units] if control == "dense" else [1 if place == 2 else 4, units]
            rows.append(
                block(
                    f"control_{place + 1}",
                    "control",
                    "Dense" if control == "dense" else "Conv1D",
                    shape,
                    out,
                    kernel=None if control == "dense" else [4],
                    stride=None if control == "dense" else [1],
                    normalization=place > 0,
                    dropout=0.5 if place else 0.0,
                    activation="relu",
                )
            )
            shape = out
        values = sum(channels) if film == "complex" else blocks
        for name in ("gammas", "betas"):
            facts = {"activation": "linear"}
            rows.append(block(name, "control", "Dense", [shape[-1]], [values], **facts))
    convolution = {"kernel": [5, 5], "stride": [2, 2], "normalization": True}
    shape, shapes = [bins, frames, 1], []
    for place, size in enumerate(channels):
        out = [shape[0] // 2, shape[1] // 2, size]
        facts = {**convolution, "film": film, "activation": "leaky_relu"}
        rows.append(block(f"encoder_{place + 1}", "encoder", "Conv2D", shape, out, **facts))
        shapes.append(out)
        shape = out
    for place in range(blocks):
        last = place == blocks - 1
        out = [2 * shape[0], 2 * shape[1], 1 if last else channels[-2 - place]]
        source = [*shape[:2], 2 * shape[2]] if place else shape
        facts = {
            **convolution,
            "dropout": 0.5 if 1 <= place < blocks - 2 else 0.0,
            "activation": "sigmoid" if last else "relu",
            "skip_from": f"encoder_{blocks - place}" if place else None,
        }
        name = f"decoder_{place + 1}"
        rows.append(block(name, "decoder", "Conv2DTranspose", source, out, **facts))
        shape = out
    facts = {"activation": "multiply"}
    rows.append(block("estimate", "output", "Multiply", shape, shape, **facts))
    return rows


def write_runs(settings, rng, *, models=(*config.UNETS, *config.VARIANTS)):
    for model in models:
        folder = settings.paths.run(model, settings.seed)
        folder.mkdir(parents=True)
        conditioned = model in config.VARIANTS
        epochs = settings.train.cunet_epochs if conditioned else settings.train.unet_epochs
        base = 0.0046 if conditioned else 0.004
        epoch = np.arange(1, epochs + 1)
        loss = base + 0.02 * np.exp(-epoch / 3) + rng.normal(0, 1e-4, epochs)
        rate = np.where(epoch > 0.6 * epochs, 5e-4, 1e-3)
        history = pd.DataFrame(
            {
                "epoch": epoch,
                "loss": loss * 1.1,
                "val_loss": loss + rng.normal(0, 2e-4, epochs),
                "learning_rate": np.where(epoch > 0.85 * epochs, 2.5e-4, rate),
                "seconds": 9.0,
                "patches_per_second": 85.0,
            }
        )
        history.to_csv(folder / "history.csv", index=False)
        total, trainable = PAPER[model] if conditioned else (9_826_325, 9_823_315)
        steps = epochs * settings.train.steps_per_epoch
        record = {
            "model": model,
            "kind": "cunet" if conditioned else "unet",
            "seed": settings.seed,
            "profile": settings.name,
            "settings": settings.model_dump(mode="json"),
            "parameters": total,
            "trainable_parameters": trainable,
            "batch_size": settings.train.batch_size,
            "steps": steps,
            "epochs": epochs,
            "best_epoch": int(history["val_loss"].idxmin()) + 1,
            "best_val_loss": float(history["val_loss"].min()),
            "seconds": steps * 0.19,
            "patches_per_second": 85.0,
            "precision": "mixed_bfloat16",
            "threads": 2,
            "versions": {"keras": "3"},
            "commit": "0123456789abcdef",
            "created": "2025-01-01T00:00:00",
        }
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "architecture.json").write_text(json.dumps(architecture(settings, model)))
        if conditioned:
            write_film(settings, rng, folder, model)


def write_film(settings, rng, folder, model):
    rows = []
    for instrument in config.INSTRUMENTS:
        for number in range(1, settings.model.blocks + 1):
            size = settings.model.filters * 2 ** (number - 1) if "complex" in model else 1
            centre = rng.normal(1.0, 0.25, 2)
            for feature in range(size):
                gamma, beta = centre + rng.normal(0, 0.3, 2) - (0, 1)
                rows.append((instrument, number, feature, gamma, beta))
    columns = ["instrument", "block", "feature", "gamma", "beta"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "film.csv", index=False)


def write_scores(settings, rng, *, tracks=14):
    folder = settings.paths.scores
    folder.mkdir(parents=True)
    names = [f"Band {place} - Song {place}" for place in range(tracks)]
    lift = dict(zip(config.INSTRUMENTS, (-1.0, 1.0, -1.5, 1.5), strict=True))
    hardness = rng.normal(0, 1.5, (tracks, 4))
    for system, level in SYSTEMS.items():
        rows = []
        for track, name in enumerate(names):
            for place, target in enumerate(config.INSTRUMENTS):
                sdr = level + lift[target] + hardness[track, place] + rng.normal(0, 0.7)
                for metric, extra in (("SDR", 0.0), ("SIR", 5.0), ("SAR", 1.0), ("ISR", 3.0)):
                    for aggregation in ("median over frames", "mean over frames"):
                        key = (system, settings.seed, name, target, metric, "BSS Eval v4")
                        shift = 0.3 if aggregation.startswith("mean") else 0.0
                        rows.append((*key, aggregation, sdr + extra - shift, 30, 3 * (place == 3)))
                rows += further_rows((system, settings.seed, name, target), sdr)
            key = (system, settings.seed, name, "mixture", "sum SDR", "plain SDR", "whole track")
            rows.append((*key, 2.0 * level, 1, 0))
        columns = ["model", "seed", "track", "target", "metric", "protocol", "aggregation"]
        frame = pd.DataFrame(rows, columns=[*columns, "value", "frames", "undefined_frames"])
        frame.to_csv(folder / f"{system}-seed{settings.seed}.csv", index=False)
    return names


def further_rows(key, sdr):
    """Rows of the protocols beside BSS Eval v4 of one track and target; vocals are silent twice."""
    shifts = (
        *((("SDR", "SIR", "SAR")[place], "BSS Eval v3", 1.0 + 5.0 * place) for place in range(3)),
        ("SDR", "SI-SDR", -0.5),
        ("SDR", "plain SDR", -1.0),
        ("residual SDR", "plain SDR", 4.0),
    )
    rows = [
        (*key, metric, protocol, "whole track", sdr + shift, 1, 0)
        for metric, protocol, shift in shifts
    ]
    silent = 2 * (key[3] == "vocals")
    energy = -10.0 - sdr if silent else float("nan")
    facts = ("energy at silence", "mean over silent frames")
    rows.append((*key, "PES", *facts, energy, 30, 30 - silent))
    rows.append((*key, "EPS", *facts, float("nan"), 30, 30))
    return rows


def write_ablation(settings, *, model="cnn_complex"):
    """The model's own scores, and what the ablations add to them."""
    scores = pd.read_csv(settings.paths.scores / f"{model}-seed{settings.seed}.csv")
    kept = scores["protocol"].isin(["BSS Eval v3", "SI-SDR"]) | (scores["metric"] == "SDR")
    kept &= scores["aggregation"].isin(["whole track", "median over frames"])
    added = {"sound": 0.0, "end to end": -0.25}
    added |= {"own maximum": -4.0, "reference range": 1.5, "as released": 0.5}
    frames = []
    for ablation, difference in added.items():
        frame = scores[kept].assign(value=scores["value"] + difference)
        frame.insert(0, "ablation", ablation)
        frames.append(frame)
    folder = settings.paths.scores / "ablation"
    folder.mkdir()
    pd.concat(frames).to_csv(folder / f"{model}-seed{settings.seed}.csv", index=False)


def write_excerpt(settings, rng):
    folder = settings.paths.scores / "excerpt"
    folder.mkdir()
    for system, level in SYSTEMS.items():
        frame = pd.DataFrame({"model": system, "seed": settings.seed, "target": config.INSTRUMENTS})
        frame["metric"] = "SDR, whole excerpt"
        frame["value"] = level / 2 + rng.normal(0, 1, 4)
        frame.to_csv(folder / f"{system}-seed{settings.seed}.csv", index=False)


def write_examples(settings, rng, track, *, seconds=14):
    rate = settings.signal.sample_rate
    time = np.arange(int(seconds * rate)) / rate
    beat = (time * 2) % 1
    tones = {
        "bass": sum(np.sin(2 * np.pi * 55 * k * time) / k for k in range(1, 6)) * (1 - beat),
        "drums": rng.normal(0, 1, len(time)) * np.exp(-12 * beat),
        "other": sum(np.sin(2 * np.pi * f * time) for f in (262, 330, 392, 784, 1176)) * 0.5,
        "vocals": sum(
            np.sin(2 * np.pi * 220 * k * time + 2 * np.sin(2 * np.pi * 5 * time)) / k
            for k in range(1, 14)
        )
        * (np.sin(2 * np.pi * time / 6) > -0.3),
    }
    stems = {name: (0.08 * audio).astype(np.float32) for name, audio in tones.items()}
    mixture = sum(stems.values())
    folder = settings.paths.examples / track
    folder.mkdir(parents=True)
    for name, audio in {"mixture": mixture, **stems}.items():
        soundfile.write(folder / f"{name}.flac", audio, rate)
    for system, leak in (("unet", 0.05), *((variant, 0.1) for variant in config.VARIANTS)):
        (folder / system).mkdir()
        for name, audio in stems.items():
            estimate = (1 - leak) * audio + leak * (mixture - audio)
            soundfile.write(folder / system / f"{name}.flac", estimate, rate)


def write_study(settings, *, tracks=14):
    """Everything that training and evaluation leave behind."""
    rng = np.random.default_rng(0)
    write_runs(settings, rng)
    names = write_scores(settings, rng, tracks=tracks)
    write_ablation(settings)
    write_excerpt(settings, rng)
    write_examples(settings, rng, names[0])


# ------------------------------------------------------------------------------ fixtures


def smoke(patch, folder):
    """The smoke profile with its data and results in a folder."""
    patch.setenv("CUNET_RESULTS", str(folder / "results"))
    patch.setenv("CUNET_DATA", str(folder / "data"))
    return config.load_profile("smoke")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Made-up results, and the plot notebook's code run on them, as (settings, its names)."""
    with pytest.MonkeyPatch.context() as patch:
        settings = smoke(patch, tmp_path_factory.mktemp("study"))
        write_study(settings, tracks=5)
        # Counting parameters takes TensorFlow, and small pictures are enough here.
        stand_in = types.ModuleType("cunet_lib.models.unet")
        stand_in.parameter_table = paper_table
        patch.setitem(sys.modules, "cunet_lib.models.unet", stand_in)
        rendered = figures._rendered
        patch.setattr(
            figures,
            "_rendered",
            lambda fig, kind, caption, dpi: rendered(fig, kind, caption, dpi=40),
        )
        names = {}
        for cell in NOTEBOOK.cells:
            if cell.cell_type == "code":
                names["shown"] = run_cell(cell.source, names)
                if "parameters" in cell.metadata.get("tags", ()):
                    names["profile"] = "smoke"
        yield settings, names


def run_cell(source, names):
    """Run a cell's code; return the value of its last expression, if it ends in one."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Made-up results without tables and figures, to damage."""
    settings = smoke(monkeypatch, tmp_path)
    write_study(settings, tracks=4)
    return settings


# ------------------------------------------------------------------------------ the notebook

TABLES = {
    "models",
    "training",
    "scores_overall",
    "scores_by_instrument",
    "outcome",
    "differences",
    "differences_v3",
    "differences_to_mixture",
    "power",
    "further_scores",
    "silence",
    "ablation",
    "excerpt",
}
FIGURES = {
    *(f"architecture_{model}" for model in ("unet", *config.VARIANTS)),
    "training_curves",
    "scores_by_instrument",
    "scores_against_parameters",
    "paired_differences",
    "film_parameters",
    "spectrograms",
}


def test_notebook_writes_every_table_and_figure_in_every_format(study):
    settings, _ = study
    for suffix in ("csv", "md", "tex"):
        assert {path.stem for path in settings.paths.tables.glob(f"*.{suffix}")} == TABLES
    for suffix in ("png", "svg", "txt"):
        assert {path.stem for path in settings.paths.figures.glob(f"*.{suffix}")} == FIGURES
    assert settings.paths.manifest.is_file()
    assert not list(settings.paths.results.rglob("*.partial"))


def test_notebook_writes_all_scores_as_one_table(study):
    settings, _ = study
    combined = pd.read_csv(settings.paths.scores / "scores.csv")
    assert set(combined["model"]) == set(SYSTEMS)
    parts = [len(pd.read_csv(path)) for path in settings.paths.scores.glob("*-seed0.csv")]
    assert len(combined) == sum(parts)


def test_notebook_has_short_cells_and_no_outputs():
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    assert max(len(cell.source.splitlines()) for cell in code) <= 7


def captions(settings):
    for path in settings.paths.tables.glob("*.md"):
        yield path.stem, path.read_text().split("\n\n")[0]
    for path in settings.paths.figures.glob("*.txt"):
        yield path.stem, path.read_text()


def test_every_caption_names_the_data_and_warns_of_rendered_music(study):
    settings, _ = study
    for name, caption in captions(settings):
        assert settings.title in caption, name
        if name != "excerpt":  # that one is real music
            assert "not comparable with MUSDB18 figures" in caption, name


def test_every_caption_of_scores_defines_them(study):
    settings, _ = study
    for name, caption in captions(settings):
        if name == "further_scores":
            assert "8192 Hz mono; 5 test tracks; training runs: seed 0." in caption
        elif any(word in name for word in ("score", "difference", "outcome", "power")):
            v4 = ("BSS Eval v4 (museval)", "1 s frames", "median over frames")
            v3 = ("BSS Eval v3 (museval's", "whole track", "two sources")
            for words in v3 if name.endswith("_v3") else v4:
                assert words in caption, name
            assert "8192 Hz mono; 5 test tracks; one training run per model (seed 0)" in caption, (
                name
            )
            assert "SDR: source-to-distortion ratio" in caption, name


def test_musdb_captions_carry_no_warning(fresh):
    settings = config.load_profile("smoke", "title=MUSDB18 data.source=musdb18")
    assert results.data_note(settings) == "Data: MUSDB18."


def test_no_axis_or_column_says_sdr_without_its_definition(study):
    settings, names = study
    for figure in names["drawings"]:
        assert "SDR" not in " ".join(texts(figure.canvas))
    for path in settings.paths.tables.glob("*.md"):
        header = path.read_text().split("\n\n")[1].splitlines()[0]
        header = re.sub(r"SI-SDR|Plain SDR", "", header)
        assert not re.search(r"S[DIA]R(?! v[34])", header), path.name
    scores, runs = names["scores"], names["runs"]
    for figure in (
        figures.scores_by_instrument(settings, scores),
        figures.paired_differences(settings, scores),
        figures.scores_against_parameters(settings, scores, runs),
    ):
        assert any("SDR v4 (dB)" in text for text in texts(figure.canvas))
        assert not any(re.search(r"SDR(?! v4)", text) for text in texts(figure.canvas))


def texts(canvas):
    return [text.get_text() for text in canvas.findobj(matplotlib.text.Text)]


# ------------------------------------------------------------------------------ saving


def test_tables_are_saved_with_full_precision_and_shown_rounded(tmp_path):
    frame = pd.DataFrame({"model": ["a_b", "c|d & e"], "value": [1 / 3, -0.001]})
    tables.save_table(frame, tmp_path, "small", "A caption of 100 %: a_b.")
    assert pd.read_csv(tmp_path / "small.csv")["value"].tolist() == frame["value"].tolist()
    markdown = (tmp_path / "small.md").read_text()
    assert markdown.startswith("A caption of 100 %: a_b.\n\n|")
    assert "0.33 |" in markdown and "0.00 |" in markdown and "-0.00" not in markdown
    assert r"c\|d & e" in markdown
    latex = (tmp_path / "small.tex").read_text()
    assert r"\caption{A caption of 100 \%: a\_b.}" in latex
    assert r"c|d \& e" in latex and r"\label{tab:small}" in latex


def test_equal_tables_and_figures_give_equal_bytes(study, tmp_path):
    settings, names = study
    for folder in ("one", "two"):
        tables.outcome_table(settings, names["scores"]).save(tmp_path / folder)
        figures.paired_differences(settings, names["scores"]).save(tmp_path / folder)
        drawing.architecture(settings, names["runs"], "cnn_simple").save(tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 9
    for name in files:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second, name
    svg = (tmp_path / "one" / "paired_differences.svg").read_text()
    assert "<title>Paired differences per test track" in svg
    assert "dc:date" not in svg and "Matplotlib v" not in svg


@pytest.mark.parametrize("name", ["../up", "a b", "", "a/b"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(config.ConfigError, match="may hold letters"):
        tables.save_table(pd.DataFrame({"a": [1]}), tmp_path, name, "caption")
    with pytest.raises(config.ConfigError, match="may hold letters"):
        figures.save_figure(figures.Canvas(), tmp_path, name, "caption")
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_caption_is_refused(tmp_path):
    with pytest.raises(config.ConfigError, match="needs a caption"):
        tables.save_table(pd.DataFrame({"a": [1]}), tmp_path, "a", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    target = write_atomically(tmp_path / "file.txt", "first")

    def fail(self, data):
        Path.open(self, "wb").close()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, "second")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "first"


# ------------------------------------------------------------------------------ tables


def test_models_table_counts_against_four_unets(study):
    settings, names = study
    frame = tables.models_table(settings, names["runs"], paper_table()).frame.set_index("model")
    assert frame.loc["unet", "parameters"] == 4 * 9_826_325 == PAPER["unet"][0]
    assert frame.loc["unet_x1", "share_of_four"] == 0.25
    assert frame.loc["dense_complex", "share_of_four"] == pytest.approx(12_165_445 / 39_305_300)
    assert frame.loc["unet_x1", "paper_parameters"] == 9_826_325
    assert frame.loc["cnn_simple", "paper_trainable"] == 9_834_703
    assert "paper_parameters" not in tables.models_table(settings, names["runs"]).frame


def test_score_tables_hold_the_statistics_of_the_analysis(study):
    settings, names = study
    table = tables.scores_table(settings, names["scores"], by_instrument=True)
    assert len(table.frame) == 4 * len(SYSTEMS)
    expected = analysis.summary(names["scores"], by_target=True)
    expected = expected.set_index(["model", "target", "metric"]).loc[("unet", "drums", "SIR")]
    row = table.frame.set_index(["model", "target"]).loc[("unet", "drums")]
    for name in ("mean", "std", "median"):
        assert row[f"sir_v4_{name}_db"] == expected[name]
    shown = table.display[table.display["Instrument"] == "drums"].set_index("Model")
    text = f"{expected['mean']:.2f} ± {expected['std']:.2f} ({expected['median']:.2f})"
    assert shown.loc["Dedicated U-Nets", "SIR v4, dB"] == text
    v3 = analysis.summary(
        names["scores"], by_target=True, protocol="BSS Eval v3", aggregation="whole track"
    )
    v3 = v3.set_index(["model", "target", "metric"]).loc[("unet", "drums", "SAR")]
    for name in ("mean", "std", "median"):
        assert row[f"sar_v3_{name}_db"] == v3[name]
    assert row["tracks_v3"] == 5 and row["undefined_tracks_v3"] == 0
    assert "BSS Eval v3 (museval's bss_eval_sources), the paper's protocol" in table.caption


def test_further_table_holds_the_mean_and_the_sum(study):
    settings, names = study
    table = protocols.further_table(settings, names["scores"])
    frame = table.frame.set_index(["model", "target"])
    assert len(frame) == 5 * len(SYSTEMS)
    plain = frame["plain_sdr_mean_db"]
    assert (frame["si_sdr_mean_db"] - plain).tolist() == pytest.approx([0.5] * len(frame))
    assert (frame["residual_sdr_mean_db"] - plain).tolist() == pytest.approx([5.0] * len(frame))
    instruments = [plain["unet", target] for target in config.INSTRUMENTS]
    assert plain["unet", "all"] == pytest.approx(np.mean(instruments))
    assert frame.loc[("unet", "all"), "sum_sdr_median_db"] == pytest.approx(12.0)
    assert frame["sum_sdr_mean_db"].isna().sum() == 4 * len(SYSTEMS)


def test_silence_table_counts_frames_and_averages_over_them(study):
    settings, names = study
    scores = names["scores"].copy()
    pes = scores["metric"].eq("PES") & scores["model"].eq("unet") & scores["target"].eq("vocals")
    rows = scores.index[pes]
    scores.loc[rows, "value"] = -40.0
    # One track is silent far longer, and louder in it: frames count, not tracks.
    scores.loc[rows[0], ["value", "undefined_frames"]] = [-10.0, 18]
    lost = scores["protocol"].eq("BSS Eval v4") & scores["model"].eq("unet")
    lost &= scores["target"].eq("bass") & scores["track"].eq("Band 1 - Song 1")
    scores.loc[lost, "value"] = float("nan")
    frame = protocols.silence_table(settings, scores).frame.set_index(["model", "target"])
    vocals, bass = frame.loc[("unet", "vocals")], frame.loc[("unet", "bass")]
    assert (vocals["frames"], vocals["undefined_frames"]) == (5 * 30, 5 * 3)
    assert vocals["silent_target_frames"] == 4 * 2 + 12
    assert vocals["predicted_energy_db"] == pytest.approx((8 * -40 + 12 * -10) / 20)
    assert vocals["silent_estimate_frames"] == 0 and np.isnan(vocals["missed_energy_db"])
    assert bass["silent_target_frames"] == 0 and np.isnan(bass["predicted_energy_db"])
    assert (bass["undefined_tracks_v4"], bass["undefined_tracks_v3"]) == (1, 0)


def test_ablation_table_pairs_tracks(study):
    settings, _ = study
    ablations = protocols.load_ablation(settings, seeds=[0])
    lost = ablations["ablation"].eq("own maximum") & ablations["target"].eq("bass")
    lost &= ablations["track"].eq("Band 1 - Song 1") & ablations["protocol"].eq("BSS Eval v3")
    ablations.loc[lost, "value"] = float("nan")
    table = protocols.ablation_table(settings, ablations)
    frame = table.frame.set_index(["ablation", "target"])
    assert len(frame) == 4 * 5
    for column in ("sdr_v3", "sdr_v4", "plain_sdr", "si_sdr"):
        assert frame.loc[("own maximum", "all"), f"{column}_difference_mean_db"] == pytest.approx(
            -4.0
        )
        assert frame.loc[("as released", "drums"), f"{column}_difference_std_db"] == pytest.approx(
            0.0, abs=1e-9
        )
    assert frame.loc[("own maximum", "bass"), ["tracks", "undefined_tracks"]].tolist() == [4, 1]
    assert frame.loc[("end to end", "bass"), ["tracks", "undefined_tracks"]].tolist() == [5, 0]
    assert table.display["SDR v3, dB"].iloc[0] == "-0.25 ± 0.00"
    assert "C-U-Net CNN, complex" in table.caption
    assert "difference from the study's own evaluation of the same model" in table.caption


def test_ablation_of_a_profile_that_joins_end_to_end_says_what_it_is_compared_with(study):
    """Else the row of patches joined end to end would be zero by construction, as in `musdb18`."""
    settings, _ = study
    paper = config.load_profile("musdb18")
    assert paper.separate.overlap == 0 and paper.separate.overlapping == 0.5
    assert config.load_profile("demo", "separate.overlap=0.25").separate.overlapping == 0.25
    caption = protocols.ablation_table(
        settings.model_copy(update={"separate": paper.separate}),
        protocols.load_ablation(settings, seeds=[0]),
    ).caption
    assert "difference from an evaluation with patches that overlap by 0.5" in caption
    assert "own evaluation" not in caption
    # The notebook that scores the ablations separates with that overlap.
    notebook = (config.ROOT / "notebooks" / "04_evaluate.ipynb").read_text(encoding="utf-8")
    assert "for share in (settings.separate.overlapping, 0)" in notebook


def test_missing_ablation_is_named_with_its_make_target(fresh):
    shutil.rmtree(fresh.paths.scores / "ablation")
    with pytest.raises(
        config.ConfigError, match=r"ablation/cnn_complex-seed0\.csv is missing; run `make reproduce"
    ):
        protocols.load_ablation(fresh)


def test_scores_of_before_the_second_protocol_are_refused_by_name(fresh):
    scores = analysis.load_scores(fresh.paths.scores)
    old = scores[scores["protocol"] == "BSS Eval v4"]
    with pytest.raises(config.ConfigError, match="BSS Eval v3"):
        tables.scores_table(fresh, old)
    with pytest.raises(config.ConfigError, match="SI-SDR"):
        protocols.further_table(fresh, old)


def test_training_table_adds_up_the_dedicated_unets(study):
    settings, names = study
    frame = tables.training_table(settings, names["runs"]).frame.set_index("model")
    single = frame[frame.index.str.startswith("unet_")]
    assert len(single) == 4
    assert frame.loc["unet", "seconds"] == single["seconds"].sum()
    assert frame.loc["unet", "steps"] == single["steps"].sum()
    patches = single["steps"] * single["batch_size"]
    rate = patches.sum() / (patches / single["patches_per_second"]).sum()
    assert frame.loc["unet", "patches_per_second"] == pytest.approx(rate)


def test_outcome_table_says_what_was_not_reached(study):
    settings, names = study
    scores = names["scores"].copy()
    silent = (scores["model"] == "cnn_simple") & (scores["target"] == "vocals")
    scores.loc[silent, "value"] = 0.0
    table = tables.outcome_table(settings, scores)
    assert table.caption.startswith("Outcome: 19 of 20 medians")
    assert table.display["Reached"].tolist().count("no: median below 2 dB") == 1


def test_several_seeds_are_named_and_averaged(fresh):
    for path in fresh.paths.scores.glob("*-seed0.csv"):
        frame = pd.read_csv(path).assign(seed=1)
        frame["value"] += 2.0
        frame.to_csv(path.with_name(path.name.replace("seed0", "seed1")), index=False)
    scores = analysis.load_scores(fresh.paths.scores)
    one = tables.scores_table(fresh, scores[scores["seed"] == 0])
    both = tables.scores_table(fresh, scores)
    assert "; mean over seeds 0 and 1 per track." in both.caption
    shift = both.frame["sdr_v4_mean_db"] - one.frame["sdr_v4_mean_db"]
    assert shift.tolist() == pytest.approx([1.0] * len(SYSTEMS))
    assert both.frame["tracks"].tolist() == one.frame["tracks"].tolist()


def add_seed(settings, seed, shift):
    """Scores of one more training run of every model, ``shift`` dB above those of seed 0."""
    for path in settings.paths.scores.glob("*-seed0.csv"):
        if path.stem.rsplit("-", 1)[0] in analysis.TRAINED:
            frame = pd.read_csv(path).assign(seed=seed)
            frame["value"] += shift * (1 + path.stem.startswith("cnn"))
            frame.to_csv(path.with_name(path.name.replace("seed0", f"seed{seed}")), index=False)


def test_spread_over_seeds_has_columns_only_with_several(fresh):
    one = analysis.load_scores(fresh.paths.scores, seeds=(0,))
    for table in (
        tables.scores_table(fresh, one),
        tables.differences_table(fresh, one),
        tables.power_table(fresh, one),
    ):
        words = " ".join([*table.frame, *table.display, table.caption])
        assert "seed_std" not in words and "ver seeds" not in words
    add_seed(fresh, 1, 1.0)
    add_seed(fresh, 2, 2.0)
    scores = analysis.load_scores(fresh.paths.scores, seeds=(0, 1, 2))
    for by_instrument in (False, True):
        table = tables.scores_table(fresh, scores, by_instrument=by_instrument)
        for version in ("v4", "v3"):
            spread = table.frame.groupby("model")[f"sdr_{version}_seed_std_db"].first()
            assert spread["unet"] == pytest.approx(1.0)
            assert spread["cnn_simple"] == pytest.approx(2.0)
            assert np.isnan(spread["mixture"])
            shown = table.display.set_index("Model")[f"SDR {version} over seeds, dB"]
            assert set(shown.loc[["Dedicated U-Nets"]]) == {"± 1.00"}
            assert set(shown.loc[["Mixture"]]) == {"-"}
        assert "Over seeds: standard deviation, over training runs" in table.caption
    table = tables.differences_table(fresh, scores)
    spread = table.frame.groupby("model")["difference_seed_std_db"].first()
    assert spread["cnn_simple"] == pytest.approx(1.0)
    assert spread["dense_simple"] == pytest.approx(0.0, abs=1e-9)
    assert figures.paired_differences(fresh, scores).caption


def test_excerpt_of_several_runs_says_that_it_is_their_mean(fresh):
    one = tables.excerpt_table(fresh, results.load_excerpt(fresh))
    assert "training runs" not in one.caption
    path = fresh.paths.scores / "excerpt" / "unet-seed0.csv"
    frame = pd.read_csv(path).assign(seed=1)
    frame["value"] += 3.0
    frame.to_csv(path.with_name("unet-seed1.csv"), index=False)
    two = tables.excerpt_table(fresh, results.load_excerpt(fresh))
    assert two.caption.endswith("Trained models: mean over 2 training runs.")
    values = [
        table.frame.query("model == 'unet'")["sdr_whole_excerpt_db"].to_numpy()
        for table in (one, two)
    ]
    assert values[1] == pytest.approx(values[0] + 1.5)


def test_differences_end_with_a_verdict_whose_rules_the_caption_says(study):
    settings, names = study
    table = tables.differences_table(settings, names["scores"])
    assert table.display.columns[-1] == "Verdict" and table.frame.columns[-1] == "verdict"
    assert set(table.display["Verdict"]) <= set(inference.VERDICTS)
    for words in (
        "family of all 20 comparisons in this table",
        "within ±0.5 dB, a margin that was set beforehand",
        "Wilcoxon's signed-rank test",
    ):
        assert words in table.caption
    scores = names["scores"].copy()
    scores.loc[scores["model"] == "unet", "value"] += 50.0
    far = tables.differences_table(settings, scores)
    assert "1.000" in set(far.display["p, equivalence"])
    scores.loc[scores["model"].isin(config.VARIANTS), "value"] = 1.0
    scores.loc[scores["model"] == "unet", "value"] = 1.0
    same = tables.differences_table(settings, scores)
    assert set(same.display["p, equivalence"]) == {"<0.001"}
    assert set(same.display["p, difference"]) == {"1.000"}
    assert set(same.display["Verdict"]) == {"equivalent"}
    improvements = tables.differences_table(settings, names["scores"], reference="mixture")
    assert "Verdict" not in improvements.display and "Wilcoxon" not in improvements.caption


def test_differences_by_the_papers_protocol_are_another_table_with_the_same_tests(study):
    settings, names = study
    scores = names["scores"].copy()
    chosen = (scores["protocol"] == SDR_V3.protocol) & (scores["model"] == "cnn_simple")
    scores.loc[chosen & (scores["metric"] == "SDR"), "value"] += 20.0
    v4 = tables.differences_table(settings, scores)
    v3 = tables.differences_table(settings, scores, measure=SDR_V3)
    assert (v4.name, v3.name) == ("differences", "differences_v3")
    assert list(v3.frame) == list(v4.frame)
    assert set(v3.frame["protocol"]) == {SDR_V3.protocol}
    assert set(v3.frame["aggregation"]) == {SDR_V3.aggregation}
    expected = inference.comparison_table(
        scores,
        settings.statistics,
        measure=SDR_V3,
    )
    assert v3.frame["verdict"].tolist() == expected["verdict"].tolist()
    # Only the shifted protocol, metric and model move.
    shifted = v3.frame.set_index("model")["difference_mean_db"]
    assert (shifted["cnn_simple"] > 10).all() and (shifted["dense_simple"] < 10).all()
    assert (v4.frame["difference_mean_db"] < 10).all()
    assert "Mean difference of SDR v3, dB" in v3.display
    assert "bss_eval_sources" in v3.caption and "median over frames" not in v3.caption
    assert "5 test tracks" in v3.caption and "Wilcoxon's signed-rank test" in v3.caption
    improved = tables.differences_table(settings, scores, reference="mixture", measure=SDR_V3)
    assert improved.name == "differences_to_mixture_v3" and "Verdict" not in improved.display


def test_power_table_says_how_many_tracks_would_do(fresh):
    scores = analysis.load_scores(fresh.paths.scores)
    table = tables.power_table(fresh, scores)
    most = table.frame["tracks_needed"].max()
    assert most > 4
    assert f"all would have it with {most:.0f} tracks." in table.caption
    assert table.display["Tracks needed"].astype(int).max() == most
    one = scores[scores["track"] == scores["track"].iloc[0]]
    few = tables.power_table(fresh, one)
    assert "Too few tracks to tell a variance." in few.caption
    assert set(few.display["Power"]) == set(few.display["Tracks needed"]) == {"n/a"}


def test_infinite_scores_do_not_stop_the_tables(fresh):
    scores = analysis.load_scores(fresh.paths.scores)
    # The mixture holds no artifacts at all.
    scores.loc[(scores["model"] == "mixture") & (scores["metric"] == "SAR"), "value"] = np.inf
    table = tables.scores_table(fresh, scores).save(fresh.paths.tables)
    assert table.display["SAR v4, dB"].iloc[0] == "inf ± n/a (inf)"
    assert re.fullmatch(r"-\d\.\d\d ± \d\.\d\d \(-\d\.\d\d\)", table.display["SDR v4, dB"].iloc[0])
    assert pd.read_csv(fresh.paths.tables / "scores_overall.csv")["sar_v4_mean_db"][0] == np.inf


# ------------------------------------------------------------------------------ figures


def test_colours_stay_apart_under_colour_vision_deficiency():
    # Machado, Oliveira and Fernandes 2009, severity 1: linear RGB.
    views = {
        "typical": np.eye(3),
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritanopia": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    for palette in (figures.SYSTEM_COLOURS, figures.INSTRUMENT_COLOURS):
        for view, matrix in views.items():
            labs = {name: lab(np.array(matrix) @ linear(c)) for name, c in palette.items()}
            for one, two in itertools.combinations(labs, 2):
                distance = np.linalg.norm(labs[one] - labs[two])
                assert distance > 20, (view, one, two, distance)


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_track_is_a_point_in_the_score_figure(study):
    settings, names = study
    figure = figures.scores_by_instrument(settings, names["scores"])
    for axes, target in zip(figure.canvas.axes, config.INSTRUMENTS, strict=True):
        points = np.concatenate([dots.get_offsets()[:, 0] for dots in axes.collections])
        chosen = analysis.track_scores(names["scores"])
        values = chosen.loc[chosen["target"] == target, "value"]
        assert sorted(points) == pytest.approx(sorted(values))


def test_titles_follow_the_data(study):
    settings, names = study
    scores = names["scores"].copy()
    conditioned = scores["model"].isin(config.VARIANTS)
    scores.loc[conditioned, "value"] += 100.0
    # Five tracks are too few for any verdict after correction, twenty are not.
    title = figures.paired_differences(settings, scores).canvas.get_suptitle()
    assert title == "Against the dedicated U-Nets: 16 undecided of 16 comparisons"
    more = pd.concat(
        scores.assign(track=scores["track"] + f" {copy}", value=scores["value"] + 0.1 * copy)
        for copy in range(4)
    )
    title = figures.paired_differences(settings, more).canvas.get_suptitle()
    assert title == "Against the dedicated U-Nets: 16 better of 16 comparisons"
    title = figures.scores_by_instrument(settings, scores).canvas.get_suptitle()
    assert title.startswith("20 of 20 median scores are above the mixture's, 4 below")
    few = scores[scores["track"] == scores["track"].iloc[0]]
    title = figures.paired_differences(settings, few).canvas.get_suptitle()
    assert title == "Against the dedicated U-Nets: 16 undecided of 16 comparisons"


def test_parameter_figure_counts_the_unets_four_times(study):
    settings, names = study
    figure = figures.scores_against_parameters(settings, names["scores"], names["runs"])
    labels = [text.get_text() for text in figure.canvas.legends[0].get_texts()]
    assert any(label.startswith("Four dedicated U-Nets") and "39.31 M" in label for label in labels)
    assert any(text.startswith("Ideal ratio mask:") for text in texts(figure.canvas))
    assert any(text.startswith("Mixture:") for text in texts(figure.canvas))


def test_drawings_show_what_the_record_says(study):
    settings, names = study
    shown = {}
    for model in ("unet", "dense_simple", "cnn_complex"):
        canvas = drawing.architecture(settings, names["runs"], model).canvas
        circles = canvas.findobj(matplotlib.patches.Circle)
        shown[model] = (len(circles) - 1, texts(canvas))  # one circle multiplies the mixture
    blocks = settings.model.blocks
    assert [count for count, _ in shown.values()] == [0, blocks, blocks]
    for _, words in shown.values():
        assert "512×64\n×1" in words and "32×4\n×16" in words
        assert "Concatenate\nskip (D2 to D4)" in words and "Dropout 0.5\n(D2)" in words
    assert not any("FiLM" in word for word in shown["unet"][1])
    assert any("one γ and one β per block" in word for word in shown["dense_simple"][1])
    assert any("one γ and one β per feature map" in word for word in shown["cnn_complex"][1])
    assert {"Conv1D", "4×32", "4×64", "1×256"} <= set(shown["cnn_complex"][1])


def test_spectrograms_show_the_part_where_all_stems_sound():
    rate = 100
    stems = np.zeros((4, 30 * rate), np.float32)
    stems[:3] = 1.0
    stems[3, 17 * rate : 22 * rate] = 1.0
    start, stop = figures._liveliest(stems, rate, 10.0)
    assert start <= 17 * rate and stop >= 22 * rate
    assert stop - start == 10 * rate
    assert figures._liveliest(stems[:, : 3 * rate], rate, 10.0) == (0, 3 * rate)


# ------------------------------------------------------------------------------ missing inputs


@pytest.mark.parametrize(
    ("lost", "message", "action"),
    [
        ("runs/cnn_simple-seed0/run.json", "smoke/runs/cnn_simple-seed0/run.json", "runs"),
        ("runs/unet_bass-seed0/history.csv", "smoke/runs/unet_bass-seed0/history.csv", "curves"),
        ("runs/cnn_complex-seed0/film.csv", "smoke/runs/cnn_complex-seed0/film.csv", "film"),
        ("runs/unet_bass-seed0/architecture.json", "unet_bass-seed0/architecture.json", "unet"),
        ("examples/Band 0 - Song 0/mixture.flac", "smoke/examples/*/mixture.flac", "song"),
        ("examples/Band 0 - Song 0/unet/bass.flac", "Song 0/unet/bass.flac", "song"),
    ],
)
def test_a_missing_input_is_named_with_its_make_target(fresh, lost, message, action):
    actions = {
        "runs": lambda: results.load_runs(fresh),
        "curves": lambda: figures.training_curves(fresh, runs),
        "film": lambda: figures.film_parameters(fresh, runs),
        "unet": lambda: drawing.architecture(fresh, runs, "unet"),
        "song": lambda: figures.spectrograms(fresh),
    }
    runs = results.load_runs(fresh)
    (fresh.paths.results / lost).unlink()
    with pytest.raises(config.ConfigError) as error:
        actions[action]()
    assert message in str(error.value)
    assert "make reproduce PROFILE=smoke" in str(error.value)
    assert str(fresh.paths.results) not in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_beside_the_study_are_none_of_its_models(fresh):
    runs = results.load_runs(fresh)
    own = fresh.paths.run("dense_complex", 0)
    shutil.copytree(own, fresh.paths.run("dense_complex", 0, "steady"))
    assert list(results.load_runs(fresh)["folder"]) == list(runs["folder"])
    shutil.rmtree(own)
    with pytest.raises(config.ConfigError, match=r"dense_complex-seed0/run\.json is missing"):
        results.load_runs(fresh)


def test_damaged_inputs_are_named(fresh):
    runs = results.load_runs(fresh)
    folder = fresh.paths.run("dense_simple", 0)
    (folder / "film.csv").write_text("instrument,block\n")
    with pytest.raises(config.ConfigError, match=r"film\.csv lacks column 'feature'"):
        figures.film_parameters(fresh, runs)
    (folder / "run.json").write_text("{")
    with pytest.raises(config.ConfigError, match=r"dense_simple-seed0/run\.json is not valid JSON"):
        results.load_runs(fresh)
    audio = fresh.paths.examples / "Band 0 - Song 0" / "unet" / "drums.flac"
    soundfile.write(audio, np.zeros(100), 44100)
    with pytest.raises(config.ConfigError, match=r"unet/drums\.flac has 44100 Hz"):
        figures.spectrograms(fresh)
    audio.write_bytes(b"no audio")
    with pytest.raises(config.ConfigError, match=r"unet/drums\.flac cannot be read"):
        figures.spectrograms(fresh)


# ------------------------------------------------------------------------------ manifest


def test_manifest_explains_the_machine_and_names_nobody(study):
    settings, _ = study
    text = settings.paths.manifest.read_text()
    manifest = json.loads(text)
    assert manifest["settings"] == settings.model_dump(mode="json")
    assert manifest["settings_hash"] == settings.section_hash()
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["platform"]["cores"] == os.cpu_count()
    assert [run["model"] for run in manifest["runs"]] == [*config.UNETS, *config.VARIANTS]
    assert set(manifest["runs"][0]) >= {"seed", "steps", "best_val_loss", "commit", "threads"}
    digest = hashlib.sha256((settings.paths.tables / "outcome.csv").read_bytes()).hexdigest()
    assert manifest["tables"]["outcome.csv"] == digest
    assert manifest["seeds"]["runs"] == [0] and manifest["seeds"]["corpus"] == settings.data.seed
    assert all(re.fullmatch(r"[0-9a-f]{64}", manifest["code"][n]) for n in ("library", "notebooks"))
    lock = (config.ROOT / "requirements.lock").read_bytes()
    assert manifest["code"]["lock"] == hashlib.sha256(lock).hexdigest()
    assert manifest["threads"]["pools"] and set(manifest["platform"]["cpu"]) == {"model", "flags"}
    assert "scores.csv" in manifest["scores"] and "unet-seed0.csv" in manifest["scores"]
    for private in (platform.node(), str(Path.home()), str(config.ROOT), getpass.getuser()):
        assert f'"{private}' not in text and f"{private}/" not in text
    assert not re.search(r'"/\w', text)


def test_manifest_holds_the_stores_hashes(fresh):
    assert json.loads(report.write_manifest(fresh).read_text())["store"] is None
    tracks = [{"name": f"A - {n}", "split": "train", "sha256": f"{n}" * 64} for n in range(3)]
    fresh.paths.store.mkdir(parents=True)
    index = fresh.paths.store / "index.json"
    index.write_text(json.dumps({"settings_hash": "abc", "tracks": tracks}))
    store = json.loads(report.write_manifest(fresh).read_text())["store"]
    assert store["settings_hash"] == "abc" and store["tracks"] == {"train": 3}
    tracks[0]["sha256"] = "f" * 64
    index.write_text(json.dumps({"settings_hash": "abc", "tracks": tracks}))
    other = json.loads(report.write_manifest(fresh).read_text())["store"]
    assert other["audio_sha256"] != store["audio_sha256"]


# ------------------------------------------------------------------------------ verification


@pytest.fixture
def committed(study, tmp_path, monkeypatch):
    """The study's tables in a git checkout of their own; returns its settings."""
    source = study[0].paths.tables
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path / "results"))
    settings = config.load_profile("smoke")
    shutil.copytree(source, settings.paths.tables)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "results")
    return settings


def git(folder, *arguments):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def change(settings, name, edit):
    path = settings.paths.tables / f"{name}.csv"
    frame = pd.read_csv(path)
    edit(frame).to_csv(path, index=False)


def test_verify_goes_by_what_was_measured(committed, capsys):
    change(committed, "outcome", shifted("sdr_v4_median_db", 0.3))
    assert report.verify(committed) == 0
    assert "reasoned, not measured" in capsys.readouterr().out
    path = committed.paths.results / report.MEASURED
    path.write_text(json.dumps({"limits": {"score": 0.2}}))
    assert report.verify(committed) == 1
    printed = capsys.readouterr().out
    assert "tolerances as measured" in printed and "(tolerance 0.2)" in printed
    for damaged in ("{", "[]", "{}", '{"limits": {"nonsense": 1}}', '{"limits": {"score": -1}}'):
        path.write_text(damaged)
        with pytest.raises(config.ConfigError, match=r"tolerances\.json"):
            report.verify(committed)


def test_verify_finds_equal_tables_equal(committed, capsys):
    assert report.verify(committed) == 0
    printed = capsys.readouterr().out
    assert printed.count(" equal\n") == len(TABLES)
    assert f"All {len(TABLES)} tables agree" in printed


def shifted(column, amount, rows=slice(None)):
    def edit(frame):
        frame[column] = frame[column].astype(float)
        frame.loc[frame.index[rows], column] += amount
        return frame

    return edit


@pytest.mark.parametrize(
    ("table", "edit", "differs", "said"),
    [
        ("scores_overall", shifted("sdr_v4_median_db", 0.9), 0, "up to 0.90 dB apart"),
        ("scores_overall", shifted("sdr_v4_median_db", 1.1), 1, "in 7 rows"),
        ("outcome", shifted("improvement_median_db", -3.0, slice(2, 3)), 1, "unet, other"),
        ("differences", shifted("difference_ci_low_db", 1.4), 0, "tolerance 1.5"),
        ("models", shifted("parameters", 1, slice(2, 3)), 1, "parameters up to 1.0000 apart"),
        ("training", shifted("seconds", 1e4), 0, "not compared: timing"),
        ("training", shifted("steps", 1), 1, "steps up to 1.0000 apart"),
        ("training", shifted("best_val_loss", 0.001), 0, "best_val_loss"),
        ("outcome", lambda f: f.assign(passed=False), 1, "passed is False, was True"),
        ("models", lambda f: f.assign(paper_name="x"), 1, "paper_name is x"),
        ("outcome", lambda f: f.head(19), 1, "not the same rows: 1, such as cnn_complex, vocals"),
        ("outcome", lambda f: f.drop(columns="tracks"), 1, "columns tracks are not in the current"),
        ("ablation", shifted("plain_sdr_difference_mean_db", 1.2, slice(0, 1)), 1, "end to end"),
        ("silence", shifted("predicted_energy_db", 2.5), 0, "tolerance 3"),
        ("excerpt", lambda f: f.assign(sdr_whole_excerpt_db=float("nan")), 1, "inf"),
    ],
)
def test_verify_holds_each_column_to_its_tolerance(committed, capsys, table, edit, differs, said):
    change(committed, table, edit)
    assert report.verify(committed) == differs
    lines = [line for line in capsys.readouterr().out.splitlines() if f"  {table} " in line]
    assert said in lines[0]
    assert ("DIFFERS" in lines[0]) == bool(differs)


def test_verify_names_missing_new_and_unreadable_tables(committed, capsys):
    (committed.paths.tables / "models.csv").unlink()
    (committed.paths.tables / "training.csv").write_text("")
    (committed.paths.tables / "extra.csv").write_text("a\n1\n")
    assert report.verify(committed) == 2
    printed = capsys.readouterr().out
    assert re.search(
        r"models +DIFFERS: is missing now; run `make reproduce PROFILE=smoke`", printed
    )
    assert re.search(r"training +DIFFERS: cannot be compared", printed)
    assert "Not committed, so not compared: extra." in printed


def test_verify_needs_a_checkout_with_committed_results(committed, tmp_path_factory, monkeypatch):
    with pytest.raises(config.ConfigError, match="holds no tables in results/demo/tables"):
        report.verify(config.load_profile("demo"))
    with pytest.raises(config.ConfigError, match="git checkout"):
        report.verify(committed, reference="no-such-commit")
    with pytest.raises(config.ConfigError, match="not the name of a git commit"):
        report.verify(committed, reference="--output=x")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(report, "ROOT", elsewhere)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    with pytest.raises(config.ConfigError, match="needs a git checkout"):
        report.verify(committed)


# ------------------------------------------------------------------------------ the web page


def test_report_has_a_place_for_every_table_and_figure(study):
    settings, _ = study
    text = webpage.build_report(settings).read_text()
    page = Page(text)
    shown = {name for name in page.ids if name.startswith(("table-", "figure-"))}
    assert shown == {
        *(f"table-{name}" for name in (*TABLES, "answer", "deviations")),
        *(f"figure-{name}" for name in FIGURES),
    }
    assert "rest" not in page.ids  # each stands where the story has it
    assert set(webpage.TITLES) >= {*TABLES, *FIGURES}
    for image in page.images:
        caption = settings.paths.figures / f"{Path(image['src']).stem}.txt"
        assert caption.read_text().startswith(image["alt"])
    means = pd.read_csv(settings.paths.tables / "scores_overall.csv").set_index("model")
    assert f"{means['sdr_v4_mean_db']['unet']:.2f} dB" in text
