"""Tables, figures, manifest and verification, on made-up results of a whole study."""

import getpass
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import git
from made_up import EVIL, LEVELS, MODELS, SETTINGS, TRAINED

from cunet_lib.core.settings import ROOT, ConfigError, load_profile, profile_names
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.evaluate import EXCERPT
from cunet_lib.evaluation.metrics import PROTOCOL_V3, SDR_V3, SDR_V4
from cunet_lib.evaluation.scores import load_scores, ordered, paired_differences, summary
from cunet_lib.explore import architecture as drawing
from cunet_lib.models import unet as models
from cunet_lib.report import figures, records, tables, verify

TABLES = {
    *("models", "training", "scores_overall", "scores_by_instrument", "differences"),
    *("further_scores", "silence", "ablation", "excerpt", "tukey"),
}
FIGURES = {
    *("architecture", "training_curves", "scores_by_instrument", "scores_against_cost"),
    *("differences", "film_parameters", "spectrograms", "dedicated_against_conditioned"),
}


def test_notebook_writes_every_table_and_figure_in_every_format(study):
    paths = study.settings.paths
    for suffix in ("csv", "md", "tex"):
        assert {path.stem for path in paths.tables.glob(f"*.{suffix}")} == TABLES
    for suffix in ("png", "svg", "txt"):
        assert {path.stem for path in paths.figures.glob(f"*.{suffix}")} == FIGURES
    combined = pd.read_csv(paths.scores / "scores.csv")
    assert set(combined["model"]) == set(LEVELS)
    assert len(combined) == sum(len(pd.read_csv(p)) for p in paths.scores.glob("*-seed0.csv"))


def captions(settings):
    for path in settings.paths.tables.glob("*.md"):
        yield path.stem, path.read_text().split("\n\n")[0]
    for path in settings.paths.figures.glob("*.txt"):
        yield path.stem, path.read_text().strip()


def test_captions_are_two_sentences_that_name_data_and_tracks(study):
    for name, caption in captions(study.settings):
        assert len(re.findall(r"\.(?=\s|$)", caption)) == 2, name
        assert study.settings.title in caption, name
        if name != "excerpt":  # that one is real music
            assert "not comparable with MUSDB18 figures" in caption, name
        if re.search("score|difference|silence|ablation", name):
            assert "5 test tracks, 8192 Hz mono, seed 0" in caption, name


def test_musdb_captions_carry_no_warning():
    settings = load_profile("smoke", "title=MUSDB18 data.source=musdb18")
    assert records.data_note(settings) == "Data: MUSDB18."


def texts(canvas):
    return [text.get_text() for text in canvas.findobj(matplotlib.text.Text)]


def test_no_axis_or_column_says_sdr_without_its_protocol(study):
    for path in study.settings.paths.tables.glob("*.md"):
        header = path.read_text().split("\n\n")[1].splitlines()[0]
        header = re.sub(r"SI-SDR|Plain SDR|Residual SDR|Sum SDR", "", header)
        assert not re.search(r"S[DIA]R(?! v[34])", header), path.name
    scores = (study.settings, study.scores)
    for figure in (
        figures.scores_by_instrument(*scores),
        figures.differences(*scores, study.differences.frame),
        figures.scores_against_cost(*scores, study.runs),
    ):
        assert any("SDR v4" in text for text in texts(figure.canvas))
        assert not any(re.search(r"SDR(?! v[34])", text) for text in texts(figure.canvas))
        assert not any("best" in text or "highest" in text for text in texts(figure.canvas))


# ------------------------------------------------------------------------------ saving


def test_tables_are_saved_with_full_precision_and_shown_as_text(tmp_path):
    frame = pd.DataFrame({"model": ["a_b", "c|d & e"], "value": [1 / 3, -0.001]})
    shown = records.lay_out(frame, {"model": "{model}", "value": "{value:.2f}"})
    tables.Table("small", frame, shown, "A caption of 100 %: a_b.").save(tmp_path)
    assert pd.read_csv(tmp_path / "small.csv")["value"].tolist() == frame["value"].tolist()
    markdown = (tmp_path / "small.md").read_text()
    assert markdown.startswith("A caption of 100 %: a_b.\n\n|")
    assert "0.33 |" in markdown and "0.00 |" in markdown and "-0.00" not in markdown
    assert r"c\|d & e" in markdown
    latex = (tmp_path / "small.tex").read_text()
    assert r"\caption{A caption of 100 \%: a\_b.}" in latex
    assert r"c|d \& e" in latex and r"\label{tab:small}" in latex


def test_tables_in_notebooks_escape_names_and_know_what_to_sort_by():
    shown = pd.DataFrame(
        {"Song": ["<script>"], "A": ["+5.75 (4.1)"], "B": ["n/a"], "C": ["<0.001"]}
    )
    text = tables.Table("t", shown, shown, "A <b> caption.")._repr_html_()
    assert "<script>" not in text and "<b>" not in text
    keys = re.findall(r'data-order="([^"]*)"', text)
    assert keys == ["&lt;script&gt;", "+5.75", "", "0.001"]


def test_equal_tables_and_figures_give_equal_bytes(study, tmp_path):
    for folder in ("one", "two"):
        tables.silence_table(study.settings, study.scores).save(tmp_path / folder)
        table = study.differences.frame
        figures.differences(study.settings, study.scores, table).save(tmp_path / folder)
        drawing.architecture(study.settings).save(tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 9
    for name in files:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second, name
    svg = (tmp_path / "one" / "differences.svg").read_text()
    assert "<title>Mean differences over test tracks" in svg
    assert "dc:date" not in svg and "Matplotlib v" not in svg


def test_cells_are_filled_as_readers_expect():
    frame = pd.DataFrame({"model": ["unet"], "target": ["all"], "x": [-0.001], "n": [float("nan")]})
    cells = {"a": "{model!l}", "b": "{target!l}", "c": "{x:.2f} ({n:+.1f})", "d": "{x:p}"}
    (row,) = records.lay_out(frame, cells).to_numpy().tolist()
    assert row == ["Dedicated U-Nets", "all (mean)", "0.00 (n/a)", "<0.001"]


# ------------------------------------------------------------------------------ tables


def test_models_table_counts_against_four_unets(study):
    frame = tables.models_table(study.settings, study.runs, study.paper).frame.set_index("model")
    assert frame.loc["unet", "parameters"] == 4 * 9_826_325
    assert frame.loc["dense_complex", "share_of_four"] == pytest.approx(10_126_325 / 39_305_300)
    assert (
        frame.loc["unet", "paper_parameters"]
        == study.paper.set_index("model")["parameters"]["unet"]
    )


def test_score_tables_hold_the_statistics_of_the_analysis(study):
    table = tables.scores_table(study.settings, study.scores, by_instrument=True)
    assert len(table.frame) == 4 * len(LEVELS)
    assert table.frame["target"].tolist() == [t for t in INSTRUMENTS for _ in LEVELS]
    row = table.frame.set_index(["model", "target"]).loc[("unet", "drums")]
    for measure, prefix in ((SDR_V4, "sdr_v4"), (SDR_V3, "sdr_v3")):
        expected = summary(study.scores, measure).set_index(["model", "target"])
        for name in ("mean", "std", "median"):
            assert row[f"{prefix}_{name}_db"] == expected.loc[("unet", "drums"), name]
    shown = table.display[table.display["Instrument"] == "drums"].set_index("Model")
    numbers = tuple(row[f"sdr_v3_{name}_db"] for name in ("mean", "std", "median"))
    assert shown.loc["Dedicated U-Nets", "SDR v3, dB"] == "{:.2f} ± {:.2f} ({:.2f})".format(
        *numbers
    )


def test_further_table_holds_the_mean_and_the_sum(study):
    frame = tables.further_table(study.settings, study.scores).frame
    frame = frame.set_index(["model", "target"])
    assert len(frame) == 5 * len(LEVELS)
    plain = frame["plain_sdr_mean_db"]
    assert (frame["si_sdr_mean_db"] - plain).tolist() == pytest.approx([0.5] * len(frame))
    assert (frame["residual_sdr_mean_db"] - plain).tolist() == pytest.approx([5.0] * len(frame))
    mean = np.mean([plain["unet", target] for target in INSTRUMENTS])
    assert plain["unet", "all"] == pytest.approx(mean)
    assert frame.loc[("unet", "all"), "sum_sdr_median_db"] == pytest.approx(12.0)
    assert frame["sum_sdr_mean_db"].isna().sum() == 4 * len(LEVELS)


def test_silence_table_counts_frames_and_averages_over_them(study):
    scores = study.scores.copy()
    pes = scores["metric"].eq("PES") & scores["model"].eq("unet") & scores["target"].eq("vocals")
    scores.loc[pes, "value"] = -40.0
    # One track is silent far longer, and louder in it: frames count, not tracks.
    scores.loc[scores.index[pes][0], ["value", "undefined_frames"]] = [-10.0, 18]
    lost = scores["protocol"].eq("BSS Eval v4") & scores["model"].eq("unet")
    lost &= scores["target"].eq("bass") & scores["track"].eq("Band 1 - Song 1")
    scores.loc[lost, "value"] = float("nan")
    frame = tables.silence_table(study.settings, scores).frame.set_index(["model", "target"])
    vocals, bass = frame.loc[("unet", "vocals")], frame.loc[("unet", "bass")]
    assert (vocals["frames"], vocals["undefined_frames"]) == (5 * 30, 5 * 3)
    assert vocals["silent_target_frames"] == 4 * 2 + 12
    assert vocals["predicted_energy_db"] == pytest.approx((8 * -40 + 12 * -10) / 20)
    assert vocals["silent_estimate_frames"] == 0 and np.isnan(vocals["missed_energy_db"])
    assert bass["silent_target_frames"] == 0 and np.isnan(bass["predicted_energy_db"])
    assert (bass["undefined_tracks_v4"], bass["undefined_tracks_v3"]) == (1, 0)


def test_ablation_table_pairs_tracks(study):
    ablations = load_scores(study.settings, "ablation", study.settings.shipped)
    lost = ablations["ablation"].eq("own maximum") & ablations["target"].eq("bass")
    lost &= ablations["track"].eq("Band 1 - Song 1") & ablations["protocol"].eq(PROTOCOL_V3)
    ablations.loc[lost, "value"] = float("nan")
    table = tables.ablation_table(study.settings, ablations)
    frame = table.frame.set_index(["ablation", "target"])
    assert len(frame) == 4 * 5
    for name in ("sdr_v3", "sdr_v4", "plain_sdr", "si_sdr"):
        column = frame[f"{name}_difference_mean_db"]
        assert column["own maximum", "all"] == pytest.approx(-4.0)
        deviation = frame[f"{name}_difference_std_db"]["as released", "drums"]
        assert deviation == pytest.approx(0.0, abs=1e-9)
    assert frame.loc[("own maximum", "bass"), ["tracks", "undefined_tracks"]].tolist() == [4, 1]
    assert frame.loc[("end to end", "bass"), ["tracks", "undefined_tracks"]].tolist() == [5, 0]
    assert table.display["SDR v3, dB"].iloc[0] == "-0.25 ± 0.00"
    assert "with patches that overlap by 0.5" in table.caption
    # A profile that joins patches end to end is ablated against patches that overlap all the same.
    assert load_profile("musdb18").separate.overlapping == 0.5
    notebook = (ROOT / "notebooks" / "04_evaluate.ipynb").read_text(encoding="utf-8")
    assert "for share in (settings.separate.overlapping, 0)" in notebook


def test_scores_of_before_the_second_protocol_are_refused_by_name(study):
    old = study.scores[study.scores["protocol"] == "BSS Eval v4"]
    with pytest.raises(ConfigError, match="BSS Eval v3"):
        tables.scores_table(study.settings, old)
    with pytest.raises(ConfigError, match="SI-SDR"):
        tables.further_table(study.settings, old)


def test_training_table_says_what_the_dedicated_unets_had_together(study):
    settings = load_profile("smoke", "train.conditions_per_mixture=4")
    frame = tables.training_table(settings, study.runs).frame.set_index("model")
    single = frame[frame.index.str.startswith("unet_")]
    for name in ("seconds", "steps", "mixtures"):
        assert frame.loc["unet", name] == single[name].sum()
    assert frame.loc["unet", "patches_per_instrument"] == single["patches"].iloc[0]
    shared = frame.loc["dense_simple"]
    assert shared["mixtures"] == shared["patches_per_instrument"] == shared["patches"] / 4


def add_seed(settings, seed, shift):
    """Scores of one more training run of every model, ``shift`` dB above those of seed 0."""
    for path in settings.paths.scores.glob("*-seed0.csv"):
        if path.stem.rsplit("-", 1)[0] in TRAINED:
            frame = pd.read_csv(path).assign(seed=seed)
            frame["value"] += shift * (1 + path.stem.startswith("cnn"))
            frame.to_csv(path.with_name(path.name.replace("seed0", f"seed{seed}")), index=False)


def test_several_seeds_are_averaged_and_their_spread_is_shown(fresh):
    add_seed(fresh, 1, 1.0)
    add_seed(fresh, 2, 2.0)
    more = load_profile("smoke", "seeds=3")
    one, several = (load_scores(settings) for settings in (fresh, more))
    for make in (tables.scores_table, tables.differences_table):
        table = make(fresh, one)
        words = " ".join([*table.frame, *table.display])
        assert "seed_std" not in words and "ver seeds" not in words
    table = tables.scores_table(fresh, several)
    assert "mean over seeds 0, 1 and 2" in table.caption
    before, after = (
        tables.scores_table(fresh, each).frame.set_index("model")["sdr_v4_mean_db"]
        for each in (one, several)
    )
    assert after["unet"] - before["unet"] == pytest.approx(1.0)
    for version in ("v4", "v3"):
        spread = table.frame.set_index("model")[f"sdr_{version}_seed_std_db"]
        assert spread["unet"] == pytest.approx(1.0) and spread["cnn_simple"] == pytest.approx(2.0)
        shown = table.display.set_index("Model")[f"SDR {version} over seeds, dB"]
        assert (shown["Dedicated U-Nets"], shown["Mixture"]) == ("± 1.00", "n/a")
    spread = tables.differences_table(fresh, several).frame.groupby("model")
    assert spread["difference_seed_std_db"].first()["cnn_simple"] == pytest.approx(1.0)


def test_differences_are_tested_by_each_protocol(study):
    scores = study.scores.copy()
    chosen = (scores["protocol"] == PROTOCOL_V3) & (scores["model"] == "cnn_simple")
    scores.loc[chosen & (scores["metric"] == "SDR"), "value"] += 20.0
    table = tables.differences_table(study.settings, scores)
    assert table.display["Protocol"].tolist() == ["SDR v4", "SDR v3"] * 20
    v4, v3 = (table.frame[table.frame["protocol"] == m.protocol] for m in (SDR_V4, SDR_V3))
    expected = inference.comparison_table(scores, study.settings.statistics, SDR_V3)
    assert v3["verdict"].tolist() == expected["verdict"].tolist()
    # Only the shifted protocol, metric and model move.
    shifted = v3.set_index("model")["difference_mean_db"]
    assert (shifted["cnn_simple"] > 10).all() and (shifted["dense_simple"] < 10).all()
    assert (v4["difference_mean_db"] < 10).all()


def test_differences_say_how_many_tracks_would_do(study):
    needed = study.differences.display["Tracks needed"]
    assert needed.str.replace(",", "").astype(int).max() > 4
    one = study.scores[study.scores["track"] == study.scores["track"].iloc[0]]
    assert set(tables.differences_table(study.settings, one).display["Tracks needed"]) == {"n/a"}


def test_infinite_scores_do_not_stop_the_tables(study, tmp_path):
    scores = study.scores.copy()
    # The mixture holds no artifacts at all.
    scores.loc[(scores["model"] == "mixture") & (scores["metric"] == "SAR"), "value"] = np.inf
    table = tables.scores_table(study.settings, scores).save(tmp_path)
    assert table.display["SAR v4, dB"].iloc[0] == "inf"
    assert pd.read_csv(tmp_path / "scores_overall.csv")["sar_v4_mean_db"][0] == np.inf


def test_an_instrument_that_is_silent_everywhere_is_n_a_in_every_table_and_figure(study):
    scores = study.scores.copy()
    scores.loc[scores["target"] == "vocals", "value"] = float("nan")
    differences = tables.differences_table(study.settings, scores)
    assert figures.differences(study.settings, scores, differences.frame).caption
    makers = (tables.further_table, tables.silence_table, tables.tukey_table)
    for make in (*makers, figures.scores_by_instrument):
        assert make(study.settings, scores).caption
    shown = tables.scores_table(study.settings, scores, by_instrument=True).display
    figure = figures.dedicated_against_conditioned(study.settings, scores)
    assert figure.canvas.axes[-1].get_title("left") == "vocals: n/a"
    tukey = tables.tukey_table(study.settings, scores).display
    assert set(tukey.loc[tukey["Instrument"] == "vocals", "Interval"]) == {"n/a"}
    vocals = shown[shown["Instrument"] == "vocals"]
    assert set(vocals["SDR v4, dB"]) == {"n/a"} and set(vocals["Tracks"]) == {"0"}


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
    # Figures show one profile's systems.
    shown = [{name for name, _ in load_profile(each).scored} for each in profile_names()]
    systems = figures.SYSTEM_COLOURS.items()
    palettes = [{name: c for name, c in systems if name in profile} for profile in shown]
    assert set().union(*palettes) == set(figures.SYSTEM_COLOURS)
    for palette in (*palettes, figures.INSTRUMENT_COLOURS):
        for view, matrix in views.items():
            labs = {name: lab(np.array(matrix) @ linear(c)) for name, c in palette.items()}
            for one, two in itertools.combinations(labs, 2):
                assert np.linalg.norm(labs[one] - labs[two]) > 20, (view, one, two)


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_track_is_a_point_in_the_score_figure(study):
    figure = figures.scores_by_instrument(study.settings, study.scores)
    for axes, target in zip(figure.canvas.axes, INSTRUMENTS, strict=True):
        points = np.concatenate([dots.get_offsets()[:, 0] for dots in axes.collections])
        rows = SDR_V4.rows(study.scores)
        values = rows.loc[rows["target"] == target, "value"]
        assert sorted(points) == pytest.approx(sorted(values))


def test_agreement_pairs_tracks_and_says_pearsons_r(study):
    pairs = paired_differences(study.scores)
    figure = figures.dedicated_against_conditioned(study.settings, study.scores)
    for axes, target in zip(figure.canvas.axes, INSTRUMENTS, strict=True):
        shown = pairs[pairs["target"] == target]
        points = np.concatenate([dots.get_offsets() for dots in axes.collections]).tolist()
        assert sorted(points) == sorted(shown[["reference_value", "value"]].to_numpy().tolist())
        groups = shown.groupby("model")[["value", "reference_value"]]
        r = [group.corr().iloc[0, 1] for _, group in groups]
        assert axes.get_title("left") == f"{target}: r {min(r):.2f} to {max(r):.2f}"


def test_titles_and_full_markers_count_what_is_confirmed(study):
    table = study.differences.frame.assign(verdict="undecided")
    table.loc[(table["protocol"] == PROTOCOL_V3) & (table["target"] == "drums"), "verdict"] = (
        "worse"
    )
    axes = figures.differences(study.settings, study.scores, table).canvas.axes
    for ax, version, found in zip(axes, ("v4", "v3"), (0, 4), strict=True):
        assert ax.get_title("left") == f"SDR {version}: {found} of 20 differences significant"
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        assert len(points) == 20
        assert sum(line.get_markerfacecolor() != "white" for line in points) == found
    rows = table[table["protocol"] == PROTOCOL_V3]
    shown = [line.get_xdata()[0] for line in points]
    assert sorted(shown) == pytest.approx(sorted(rows["difference_mean_db"]))


def test_a_profile_like_another_stands_beside_it(study):
    settings = study.settings.model_copy(update={"like": "study"})
    known = study.scores.copy()
    known.loc[known["model"] == "dense_complex", "value"] -= 20.0
    two = study.scores[study.scores["model"].isin(["mixture", "unet", "dense_complex"])]
    table = tables.again_table(settings, two, known)
    frame = table.frame
    assert set(frame["model"]) == {"dense_complex"} and len(frame) == 2 * 5
    moved = (frame["difference_mean_db"] - frame["known_difference_mean_db"]).to_numpy()
    assert moved == pytest.approx(20.0) and frame["shift_db"].to_numpy() == pytest.approx(moved)
    there = tables.differences_table(settings, known).frame.query("model == 'dense_complex'")
    keys = ["target", "difference_mean_db", "verdict"]
    stated = frame[["target", "known_difference_mean_db", "known_verdict"]].to_numpy()
    assert sorted(map(tuple, stated)) == sorted(map(tuple, there[keys].to_numpy()))
    again = tables.again_table(settings, two, two)
    assert (again.frame["shift_db"] == 0).all() and "10 of 10 verdicts" in again.caption


def test_without_dedicated_networks_those_of_the_profile_that_this_one_is_like_are_taken(fresh):
    own = {"name": "own", "like": fresh.name, "seeds": {"dense_complex": 1}}
    settings = fresh.model_copy(update=own)
    shutil.copytree(fresh.paths.run("dense_complex", 0), settings.paths.run("dense_complex", 0))
    shutil.copytree(fresh.paths.scores, settings.paths.scores)
    for path in settings.paths.scores.rglob("unet-*"):
        path.unlink()
    runs, scores = records.load_runs(settings), load_scores(settings)
    assert runs["model"].tolist() == [*UNETS, "dense_complex"]
    known = load_scores(fresh)
    pd.testing.assert_frame_equal(scores, ordered(known[known["model"].isin(scores["model"])]))
    table = tables.differences_table(settings, scores)
    assert set(table.frame["model"]) == {"dense_complex"}
    assert ", dedicated U-Nets of the profile smoke;" in table.caption


def test_steps_tell_what_each_network_gains_over_the_row_above(study):
    table = tables.steps_table(study.settings, study.scores, study.runs)
    frame = table.frame.set_index("model")
    *models, reference = frame.index
    assert models == list(TRAINED[1:]) and reference == "unet"
    figure = figures.steps(study.settings, study.scores, table.frame)
    for ax, start in zip(figure.canvas.axes, ("sdr_v4", "sdr_v3"), strict=True):
        means, gains = frame[f"{start}_mean_db"], frame[f"{start}_gain_mean_db"]
        assert gains.isna().tolist() == [True, *([False] * (len(models) - 1)), True]
        for before, model in itertools.pairwise(models):
            assert gains[model] == pytest.approx(means[model] - means[before])
            low, high = frame.loc[model, [f"{start}_gain_ci_low_db", f"{start}_gain_ci_high_db"]]
            assert low <= gains[model] <= high
        bar, *lines = ax.lines
        assert bar.get_xdata()[0] == pytest.approx(means[reference])
        ends = [line.get_xdata()[-1] for line in lines[1::2]]
        assert ends == pytest.approx(means[models].tolist())
    assert frame["teraflop"].idxmax() == "unet"


def test_one_pass_with_shares_serves_all_conditions_of_a_mixture(fresh):
    folder = fresh.paths.runs / "shares-seed0"
    shutil.copytree(fresh.paths.runs / "cnn_complex-seed0", folder)
    record = json.loads((folder / "run.json").read_text()) | {"model": "shares"}
    (folder / "run.json").write_text(json.dumps(record))
    size = {"filters": fresh.model.filters, "blocks": fresh.model.blocks}
    products = models.multiply_adds("shares", **size, shape=fresh.patch_shape)
    for conditions in (1, 4):
        train = fresh.train.model_copy(update={"conditions_per_mixture": conditions})
        settings = fresh.model_copy(update={"seeds": {"shares": 1}, "train": train})
        (run,) = records.load_runs(settings).to_dict("records")
        passes = run["steps"] * run["batch_size"] / conditions
        assert run["teraflop"] == pytest.approx(6 * passes * products / 1e12)


def test_cost_figure_counts_the_unets_four_times_and_seeds_once(study):
    twice = pd.concat([study.runs, study.runs.assign(seed=1)], ignore_index=True)
    for runs in (study.runs, twice):
        figure = figures.scores_against_cost(study.settings, study.scores, runs)
        sizes, computed = (
            {each.get_label().split(":")[0]: each.lines[0].get_xdata()[0] for each in ax.containers}
            for ax in figure.canvas.axes
        )
        assert sizes["Dedicated U-Nets"] == pytest.approx(4 * 9.826325)
        train = study.settings.train
        # The same U-Net, so that patches alone make the difference.
        ratio = computed["Dedicated U-Nets"] / computed["C-U-Net CNN, complex"]
        assert ratio == pytest.approx(4 * train.unet_epochs / train.cunet_epochs)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("dense_simple", ("one γ and one β per block", "Dense")),
        ("cnn_complex", ("one γ and one β per feature map", "Conv1D", "4×32")),
    ],
)
def test_drawing_shows_what_the_record_says(study, model, words):
    canvas = drawing.architecture(study.settings.model_copy(update={"shipped": model})).canvas
    circles = canvas.findobj(matplotlib.patches.Circle)
    # One circle multiplies the mixture, the others are FiLM.
    assert len(circles) - 1 == study.settings.model.blocks
    shown = texts(canvas)
    assert "512×64\n×1" in shown and "32×4\n×16" in shown
    for word in ("FiLM", *words):
        assert any(word in text for text in shown)


# ------------------------------------------------------------------------------ missing inputs

READERS = {
    "runs/cnn_complex-seed0/run.json": lambda settings, runs: records.load_runs(settings),
    "runs/unet_bass-seed0/history.csv": figures.training_curves,
    "runs/cnn_complex-seed0/film.csv": figures.film_parameters,
    "runs/dense_complex-seed0/architecture.json": lambda settings, runs: drawing.architecture(
        settings
    ),
    "examples/A song/unet/bass.flac": lambda settings, runs: figures.spectrograms(settings),
    "scores/ablation/dense_complex-seed0.csv": lambda settings, runs: load_scores(
        settings, "ablation", settings.shipped
    ),
}


@pytest.mark.parametrize("problem", ["missing", "damaged"])
@pytest.mark.parametrize("lost", READERS)
def test_a_missing_or_damaged_input_is_named_in_one_sentence(fresh, lost, problem):
    runs, path = records.load_runs(fresh), fresh.paths.results / lost
    path.unlink() if problem == "missing" else path.write_text("[")
    with pytest.raises(ConfigError, match="make reproduce") as error:
        READERS[lost](fresh, runs)
    assert lost in str(error.value) and f"is {problem}" in str(error.value)
    assert "\n" not in str(error.value) and str(fresh.paths.results) not in str(error.value)


def test_the_real_song_comes_last_and_songs_are_heard_where_every_stem_sounds(fresh):
    (fresh.paths.examples / EVIL).rename(fresh.paths.examples / "Z song")
    real = (fresh.paths.examples / "A song").rename(fresh.paths.examples / EXCERPT)
    loud, quiet = 0.5 * np.ones(8192), 0.05 * np.sin(np.arange(8192))
    for name in INSTRUMENTS:  # bass is loudest in the first second, where nothing else plays
        parts = [loud if name == "bass" else 0 * loud, 0 * loud, quiet]
        soundfile.write(real / f"{name}.flac", np.concatenate(parts), 8192)
    songs = records.load_songs(fresh, seconds=1.0)
    assert list(songs) == ["Z song", EXCERPT]
    assert all(np.abs(songs[EXCERPT][name]).max() > 0.04 for name in INSTRUMENTS)


def test_songs_of_another_rate_or_length_are_refused(fresh):
    path = fresh.paths.examples / "A song" / "unet" / "drums.flac"
    for rate, words in ((44100, "44100 Hz instead"), (8192, "differ in length")):
        soundfile.write(path, np.zeros(100), rate)
        with pytest.raises(ConfigError, match=words):
            records.load_songs(fresh)
    shutil.rmtree(fresh.paths.examples)
    with pytest.raises(ConfigError, match=r"mixture\.flac is missing"):
        records.load_songs(fresh)


def test_runs_are_those_of_the_profile(fresh):
    runs = records.load_runs(fresh)
    assert runs["model"].tolist() == list(MODELS)
    own = fresh.paths.run("dense_complex", 0)
    for other in (fresh.paths.run("dense_complex", 1), fresh.paths.run("dense_complex_np", 0)):
        shutil.copytree(own, other)
    assert list(records.load_runs(fresh)["folder"]) == list(runs["folder"])
    shutil.rmtree(own)
    with pytest.raises(ConfigError, match=r"dense_complex-seed0/run\.json is missing"):
        records.load_runs(fresh)


def test_an_executed_notebook_whose_model_was_trained_again_is_left_out(fresh):
    names = [f"03_train_cunet.{run}-seed0" for run in ("cnn_complex", "dense_complex")]
    names += ["05_plot", "07_conditions.dense_complex-seed0"]
    fresh.paths.notebooks.mkdir(parents=True)
    for time, name in enumerate(names):
        (fresh.paths.notebooks / f"{name}.ipynb").touch()
        os.utime(fresh.paths.notebooks / f"{name}.ipynb", (1e9 + time, 1e9 + time))
    assert list(records.executed(fresh)) == names
    for time, name in enumerate(names[:2], start=10):
        os.utime(fresh.paths.notebooks / f"{name}.ipynb", (1e9 + time, 1e9 + time))
    assert list(records.executed(fresh)) == names[:3]


# ------------------------------------------------------------------------------ manifest


def test_manifest_explains_the_machine_and_names_nobody(study):
    settings = study.settings
    text = settings.paths.manifest.read_text()
    manifest = json.loads(text)
    assert manifest["settings"] == settings.model_dump(mode="json")
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["platform"]["cores"] == os.cpu_count()
    assert set(manifest["platform"]["cpu"]) == {"model", "flags"}
    assert [run["model"] for run in manifest["runs"]] == list(MODELS)
    assert set(manifest["runs"][0]) >= {"seed", "steps", "best_val_loss", "commit", "threads"}
    digest = hashlib.sha256((settings.paths.tables / "silence.csv").read_bytes()).hexdigest()
    assert manifest["tables"]["silence.csv"] == digest
    assert all(re.fullmatch(r"[0-9a-f]{16,64}", each) for each in manifest["code"].values())
    assert "unet-seed0.csv" in manifest["scores"]
    for private in (platform.node(), str(Path.home()), str(ROOT), getpass.getuser()):
        assert f'"{private}' not in text and f"{private}/" not in text
    assert not re.search(r'"/\w', text)


def test_manifest_hashes_nothing_of_other_runs(fresh):
    old = fresh.paths.tables / "old.csv"
    old.parent.mkdir()
    old.write_text("a\n1\n")
    os.utime(old, (1e9, 1e9))
    beside = fresh.paths.scores / "unet-seed7.csv"  # committed with others
    shutil.copy(fresh.paths.scores / "unet-seed0.csv", beside)
    shutil.copy(beside, fresh.paths.scores / "ablation" / "dense_simple-seed0.csv")
    assert set(load_scores(fresh, "ablation", fresh.shipped)["model"]) == {fresh.shipped}
    runs = records.load_runs(fresh)
    first = json.loads(verify.write_manifest(fresh, runs).read_text())
    assert first["tables"] == {}
    assert len(first["scores"]) == len(LEVELS) and beside.name not in first["scores"]


# ------------------------------------------------------------------------------ verification


@pytest.fixture
def committed(study, tmp_path, monkeypatch):
    """The study's tables in a git checkout of their own; returns its settings."""
    paths = study.settings.paths
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path / "results"))
    settings = load_profile("smoke")
    shutil.copytree(paths.tables, settings.paths.tables)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "results")
    shutil.copytree(paths.notebooks, settings.paths.notebooks)
    return settings


def shifted(column, amount, rows=slice(None)):
    def edit(frame):
        frame[column] = frame[column].astype(float)
        frame.loc[frame.index[rows], column] += amount
        return frame

    return edit


@pytest.mark.parametrize(
    ("table", "edit", "differs", "said"),
    [
        ("scores_overall", lambda f: f, 0, "equal"),
        ("scores_overall", shifted("sdr_v4_median_db", 0.9), 0, "by at most 0.9 (tolerance 1.5"),
        ("scores_overall", shifted("sdr_v4_median_db", 1.6), 1, "by at most 1.6"),
        ("scores_by_instrument", shifted("sdr_v3_mean_db", -3.0, slice(1, 2)), 1, "unet, bass"),
        ("differences", shifted("difference_ci_low_db", 1.4), 0, "tolerance 1.5"),
        ("differences", lambda f: f.assign(verdict="worse"), 1, "verdict differs in 40 of 40"),
        ("differences", shifted("p_difference", 0.5), 0, "equal"),
        ("models", shifted("parameters", 1, slice(2, 3)), 1, "parameters by at most 1"),
        ("training", shifted("seconds", 1e4), 0, "equal"),
        ("training", shifted("steps", 1), 1, "steps by at most 1"),
        ("differences", lambda f: f.head(39), 1, "not the same rows: 1, such as cnn_complex"),
        ("differences", lambda f: f.drop(columns="tracks"), 1, "only in one of them: tracks"),
        ("ablation", shifted("plain_sdr_difference_mean_db", 1.7, slice(0, 1)), 1, "end to end"),
        ("excerpt", lambda f: f.assign(sdr_whole_excerpt_db=float("nan")), 1, "inf"),
    ],
)
def test_verify_holds_each_column_to_its_tolerance(committed, capsys, table, edit, differs, said):
    path = committed.paths.tables / f"{table}.csv"
    edit(pd.read_csv(path)).to_csv(path, index=False)
    assert verify.verify(committed) == differs
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith(f"  {table} ")]
    assert said in line and ("DIFFERS" in line) == bool(differs)
    assert f"{len(TABLES)} compared, {differs} beyond tolerance, 0 not made here." in printed
    assert len(printed.splitlines()) < 24


def test_equivalent_is_equivalent_whatever_the_sign():
    texts = ("equivalent", "equivalent (worse by less than the margin)")
    one, two = (pd.DataFrame({"model": ["a"], "verdict": [text]}) for text in texts)
    assert verify.compare(one, two) == (True, "equal")
    assert not verify.compare(one, two.assign(verdict="undecided"))[0]


def test_verify_counts_what_this_run_did_not_make_apart(committed, capsys):
    notebook = next(committed.paths.notebooks.glob("*.ipynb"))
    text = notebook.read_text().replace("table-models", "other").replace("table-silence", "other")
    notebook.write_text(text)
    (committed.paths.tables / "training.csv").write_text("")
    assert verify.verify(committed) == 1
    printed = capsys.readouterr().out
    assert "Not made here: models, silence." in printed
    assert re.search(r"training +DIFFERS +cannot be compared", printed)
    assert f"{len(TABLES) - 2} compared, 1 beyond tolerance, 2 not made here." in printed
    shutil.rmtree(committed.paths.notebooks)  # a fresh clone
    assert verify.verify(committed) == 0
    assert "0 compared" in capsys.readouterr().out


def test_verify_needs_a_checkout_with_committed_results(committed, tmp_path_factory, monkeypatch):
    with pytest.raises(ConfigError, match="holds no tables in results/demo/tables"):
        verify.verify(load_profile("demo"))
    with monkeypatch.context() as patch:  # the whole hint of git, command and all
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        with pytest.raises(ConfigError, match=r"dubious .* git config --global --add safe\.dir"):
            verify.verify(committed)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(verify, "ROOT", elsewhere)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    with pytest.raises(ConfigError, match="needs a git checkout"):
        verify.verify(committed)


@pytest.fixture
def fresh(study, tmp_path, monkeypatch):
    """Made-up results without tables and figures, to damage."""
    made, results = study.settings.paths.results, tmp_path / "results"
    monkeypatch.setenv("CUNET_RESULTS", str(results))
    plotted = ("tables", "figures", "notebooks", "manifest.json", "scores.csv")
    shutil.copytree(made, results / made.name, ignore=shutil.ignore_patterns(*plotted))
    return SETTINGS
