"""Results of a whole study, made up in a second: what training and evaluation leave behind."""

import ast
import json
import types
from dataclasses import replace
from functools import cache

import nbformat
import numpy as np
import pandas as pd
import soundfile
from nbformat.v4 import new_output

from cunet_lib.core.settings import ROOT, load_profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.evaluation.metrics import SCORE_COLUMNS
from cunet_lib.models import unet as models
from cunet_lib.report import figures

PROFILE = {"profile": "smoke", "overrides": "seeds=1"}  # all the paper's models
SETTINGS = load_profile(*PROFILE.values())
TRAINED = tuple(SETTINGS.seeds)
MODELS = tuple(model for model, _ in SETTINGS.runs)

LEVELS = {"mixture": -6.0, "unet": 6.0, "ideal_ratio_mask": 10.5}
LEVELS |= {variant: 4.6 - 0.3 * place for place, variant in enumerate(TRAINED[1:])}


@cache
def architecture(model):
    """What a run records of an untrained network of the profile's size."""
    size = {"filters": SETTINGS.model.filters, "blocks": SETTINGS.model.blocks}
    return models.describe(models.build(model, shape=SETTINGS.patch_shape, **size))


def write_runs(settings, rng):
    train = settings.train
    for model in MODELS:
        folder = settings.paths.run(model, 0)
        folder.mkdir(parents=True)
        epochs = train.cunet_epochs if model in VARIANTS else train.unet_epochs
        epoch = np.arange(1, epochs + 1)
        loss = 0.004 + 0.02 * np.exp(-epoch / 3) + rng.normal(0, 1e-4, epochs)
        history = pd.DataFrame({"epoch": epoch, "loss": 1.1 * loss, "val_loss": loss})
        history.to_csv(folder / "history.csv", index=False)
        steps, size = epochs * train.steps_per_epoch, 9_826_325 + 300_000 * (model in VARIANTS)
        record = {
            **{"model": model, "seed": 0, "profile": settings.name},
            **{"settings": settings.model_dump(mode="json"), "batch_size": train.batch_size},
            **{"parameters": size, "trainable_parameters": size - 3000, "steps": steps},
            **{"epochs": epochs, "best_epoch": epochs, "best_val_loss": float(loss.min())},
            **{"seconds": steps * 0.19, "patches_per_second": 85.0, "precision": "float32"},
            **{"threads": 2, "versions": {"keras": "3"}, "commit": "0123456789abcdef"},
        }
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "architecture.json").write_text(json.dumps(architecture(model)))
        if model in VARIANTS:
            rows = [
                (instrument, number, 0, rng.normal(1, 0.3), rng.normal(0, 0.3))
                for instrument in INSTRUMENTS
                for number in range(1, settings.model.blocks + 1)
            ]
            film = pd.DataFrame(rows, columns=["instrument", "block", "feature", "gamma", "beta"])
            film.to_csv(folder / "film.csv", index=False)


def write_scores(settings, rng):
    """Every protocol's rows of five tracks; vocals are silent in two frames of each."""
    names = [f"Band {place} - Song {place}" for place in range(5)]
    hardness = rng.normal(0, 1.5, (len(names), len(INSTRUMENTS)))
    for system, level in LEVELS.items():
        rows = []
        for track, name in enumerate(names):
            for place, target in enumerate(INSTRUMENTS):
                key = (system, 0, name, target)
                sdr = level + hardness[track, place] + rng.normal(0, 0.7)
                for metric, extra in (("SDR", 0.0), ("SIR", 5.0), ("SAR", 1.0), ("ISR", 3.0)):
                    facts = ("BSS Eval v4", "median over frames")
                    rows.append((*key, metric, *facts, sdr + extra, 30, 3 * (place == 3)))
                for metric, protocol, extra in (
                    *(("SDR", "BSS Eval v3", 1.0), ("SIR", "BSS Eval v3", 6.0)),
                    *(("SAR", "BSS Eval v3", 11.0), ("SDR", "SI-SDR", -0.5)),
                    *(("SDR", "plain SDR", -1.0), ("residual SDR", "plain SDR", 4.0)),
                ):
                    rows.append((*key, metric, protocol, "whole track", sdr + extra, 1, 0))
                silent = 2 * (target == "vocals")
                facts = ("energy at silence", "mean over silent frames")
                energy = -10.0 - sdr if silent else float("nan")
                rows.append((*key, "PES", *facts, energy, 30, 30 - silent))
                rows.append((*key, "EPS", *facts, float("nan"), 30, 30))
            key = (system, 0, name, "mixture", "sum SDR", "plain SDR", "whole track")
            rows.append((*key, 2.0 * level, 1, 0))
        frame = pd.DataFrame(rows, columns=SCORE_COLUMNS)
        save(frame, settings.paths.scores / f"{system}-seed0.csv")


def save(frame, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def write_ablation(settings):
    """The shipped model's own scores, and what the ablations add to them."""
    name = f"{settings.shipped}-seed0.csv"
    scores = pd.read_csv(settings.paths.scores / name)
    added = {"sound": 0.0, "end to end": -0.25}
    added |= {"own maximum": -4.0, "reference range": 1.5, "as released": 0.5}
    frames = [
        scores.assign(value=scores["value"] + difference, ablation=ablation)
        for ablation, difference in added.items()
    ]
    save(pd.concat(frames), settings.paths.scores / "ablation" / name)


def write_excerpt(settings):
    for system, level in LEVELS.items():
        facts = {"model": system, "seed": 0, "metric": "SDR, whole excerpt"}
        frame = pd.DataFrame({"target": INSTRUMENTS, "value": level / 2}).assign(**facts)
        save(frame, settings.paths.scores / "excerpt" / f"{system}-seed0.csv")


def write_song(settings, rng, song):
    rate, folder = settings.signal.sample_rate, settings.paths.examples / song
    sounds = {name: 0.05 * rng.normal(0, 1, 3 * rate) for name in INSTRUMENTS}
    for system in ("", *TRAINED):
        (folder / system).mkdir(parents=True, exist_ok=True)
        for name, sound in sounds.items():
            soundfile.write(folder / system / f"{name}.flac", sound, rate)
    soundfile.write(folder / "mixture.flac", sum(sounds.values()), rate)


# No file name holds a slash, so the closing tag has a look-alike.
EVIL = "<script>alert(1)<\N{FRACTION SLASH}script>"


def write_study(settings):
    rng = np.random.default_rng(0)
    write_runs(settings, rng)
    write_scores(settings, rng)
    write_ablation(settings)
    write_excerpt(settings)
    for song in ("A song", EVIL):
        write_song(settings, rng, song)


def plotted(patch, folder):
    """Run the plot notebook's code on a made-up study, and keep an executed copy of it.

    Returns
    -------
    types.SimpleNamespace
        settings, and of the notebook runs, scores, the tables differences and models, and paper
        (the counts at the paper's size).
    """
    patch.setenv("CUNET_RESULTS", str(folder / "results"))
    patch.setenv("CUNET_DATA", str(folder / "data"))
    write_study(SETTINGS)
    # Building networks of the paper's size takes seconds, and small pictures are enough here.
    paper = pd.DataFrame({"model": TRAINED, "parameters": 4 * 9_826_325, "trainable": 1})
    patch.setattr(models, "parameter_table", lambda systems: paper)
    rendered = figures.Figure._rendered
    small = lambda figure, *about: rendered(replace(figure, dpi=40), *about)  # noqa: E731
    patch.setattr(figures.Figure, "_rendered", small)
    notebook, names = nbformat.read(ROOT / "notebooks" / "05_plot.ipynb", as_version=4), {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = run_cell(cell.source, names)
            kinds = {"text/html": "_repr_html_", "text/markdown": "_repr_markdown_"}
            data = {kind: getattr(shown, by)() for kind, by in kinds.items() if hasattr(shown, by)}
            cell.outputs = [new_output("display_data", data)] if data else []
            names |= PROFILE
    SETTINGS.paths.notebooks.mkdir()
    nbformat.write(notebook, SETTINGS.paths.notebooks / "05_plot.ipynb")
    study = {name: names[name] for name in ("settings", "runs", "scores", "differences", "models")}
    return types.SimpleNamespace(**study, paper=paper)


def run_cell(source, names):
    """Run a cell's code; return the value of its last expression, if it ends in one."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
