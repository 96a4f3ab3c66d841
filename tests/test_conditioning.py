"""What conditions do: measurements on systems whose answers are known, and on networks."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import NETWORKS, changed, outputs, untrained_run

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.explore import conditioning as control
from cunet_lib.explore import conditioning_figures as shown
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import PAIRS, all_one_hot
from cunet_lib.models.film import film_parameters
from cunet_lib.report import verify as report

SMALL = {"shape": (64, 32, 1), "filters": 2, "blocks": 3}


@pytest.fixture
def audio(rng):
    """A song ``(5, samples)``: mixture first, then four stems of different levels."""
    stems = rng.normal(size=(4, 4000)) * np.array([[1.0], [0.5], [2.0], [1.5]])
    return np.concatenate([stems.sum(axis=0, keepdims=True), stems]).astype(np.float32)


class Known:
    """A separator that gives each stem at a level that is a function of its z, plus a leak."""

    def __init__(self, audio, curve=lambda z: z, leak=0.0):
        self.audio, self.curve, self.leak = audio, curve, leak

    def __call__(self, mixture, conditions):
        np.testing.assert_array_equal(mixture, self.audio[0])
        levels = self.curve(np.asarray(conditions, float))
        return (levels @ self.audio[1:] + self.leak * mixture).astype(np.float32)


def known(audio, *, free=None, **answers):
    """A run whose separators' answers are known."""
    system = Known(audio, **answers)
    return SimpleNamespace(separator=system, uncontrolled=free and Known(audio, **free))


# ------------------------------------------------------------------------------ measurements


@pytest.mark.parametrize(
    ("curve", "ideal"),
    [(lambda z: z, lambda z: z), (lambda z: (z > 0.5).astype(float), lambda z: z > 0.5)],
    ids=["fader", "switch"],
)
def test_a_perfect_fader_is_the_diagonal_and_a_switch_is_none(audio, curve, ideal):
    table = control.fader(known(audio, curve=curve), audio)
    assert list(dict.fromkeys(table["target"])) == list(INSTRUMENTS)
    assert tuple(table["z"][: len(control.LEVELS)]) == control.LEVELS
    np.testing.assert_allclose(table["ratio"], ideal(table["z"]), atol=1e-5)


def test_an_estimate_that_is_always_silent_has_no_relative_level(audio):
    assert control.fader(known(audio, curve=lambda z: 0 * z), audio)["ratio"].isna().all()


def test_nothing_and_everything(audio):
    (row,) = control.extremes(known(audio, leak=0.01), audio).to_dict("records")
    assert row["silence_db"] == pytest.approx(-40, abs=0.1)
    # One leak in the estimate of everything, four in the sum of four.
    assert row["everything_db"] == pytest.approx(40, abs=0.1)
    assert row["sum_db"] == pytest.approx(40 - 20 * np.log10(4), abs=0.1)
    (row,) = control.extremes(known(audio), audio).to_dict("records")
    assert row["silence_db"] == control.FLOOR_DB


def test_pairs_are_compared_with_the_true_sum(audio):
    table = control.pairs(known(audio, leak=0.1), audio)
    assert list(table["condition"]) == [" + ".join(pair) for pair in PAIRS]
    # The sum of two estimates leaks twice: 6 dB worse.
    np.testing.assert_allclose(table["difference_db"], 20 * np.log10(2), atol=0.01)
    first = audio[1] + audio[2]
    expected = 10 * np.log10((first**2).sum() / ((0.1 * audio[0]) ** 2).sum())
    assert table["together_db"][0] == pytest.approx(expected, abs=0.01)


def test_uncontrolled_estimate_is_scored_against_every_reference(audio):
    free = {"curve": lambda z: np.tile([1.0, 0, 0, 0], (len(z), 1)), "leak": 0.01}
    table = control.without_control(known(audio, free=free, leak=0.01), audio).set_index("target")
    assert list(table.index) == [*INSTRUMENTS, "mixture"]
    assert table["uncontrolled_db"].idxmax() == "bass"
    assert table["uncontrolled_db"]["bass"] == pytest.approx(table["controlled_db"]["bass"])
    assert table["level_db"]["bass"] == pytest.approx(0, abs=0.3)
    assert table["level_db"]["drums"] == pytest.approx(6, abs=0.6)
    assert (table["mixture_db"].drop("mixture") < table["controlled_db"].drop("mixture")).all()
    assert np.isnan(table["mixture_db"]["mixture"])


def test_levels_have_a_floor_and_silent_references_none(audio):
    assert control.level_db(audio[0], audio[0]) == 0
    assert control.level_db(0.1 * audio[0], audio[0]) == pytest.approx(-20, abs=1e-3)
    assert control.level_db(0 * audio[0], audio[0]) == control.FLOOR_DB
    assert np.isnan(control.level_db(audio[0], 0 * audio[0]))


def test_a_new_measurement_is_one_entry(runs, tones, monkeypatch, tmp_path):
    """It is taken of every run on every test song, and has its table and its figure."""
    settings, loaded = runs
    _, store = tones
    heard = []

    def measure(run, audio):
        heard.append(audio)
        return pd.DataFrame({"length": [len(run.name)]})

    new = control.Measurement(measure, (), {"length": "length of the name"}, "Names", "Names")
    monkeypatch.setitem(control.MEASUREMENTS, "new", new)
    table = control.measured("new", store, loaded)
    songs = [entry.name for entry in store.split("test")]
    assert list(table[["track", "model", "length"]].itertuples(index=False, name=None)) == [
        (song, run.name, len(run.name)) for song in songs for run in loaded
    ]
    np.testing.assert_array_equal(heard[0], store.audio(store.split("test")[0]))
    shown.table(settings, "new", table).save(tmp_path)
    shown.figure(settings, "new", table).save(tmp_path)
    assert len(list(tmp_path.glob("conditions_new.*"))) == 6


# ------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", NETWORKS)
def test_uncontrolled_network_has_neutral_film_and_ignores_z(name, rng):
    network = models.build(name, **SMALL, start="he", seed=2)
    before = [np.array(weight) for weight in network.get_weights()]
    free = control.uncontrolled(network)
    table = film_parameters(free, rng.random((5, 4)))
    assert (table["gamma"] == 1).all() and (table["beta"] == 0).all()
    mixture = np.repeat(rng.random((1, *SMALL["shape"]), np.float32), 4, axis=0)
    estimates = outputs(free, [mixture, all_one_hot()])
    np.testing.assert_array_equal(estimates[1:], estimates[:-1])
    told_apart = outputs(network, [mixture, all_one_hot()])
    assert np.abs(told_apart[1:] - told_apart[:-1]).max() > 1e-4
    for old, now in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    # Neutral FiLM hands on what normalisation gave it.
    parts = [f"{VARIANTS[name].placement}_2_{part}" for part in ("normalization", "film")]
    probe = keras.Model(free.inputs, [free.get_layer(part).output for part in parts])
    normalised, modulated = map(np.asarray, probe([mixture, all_one_hot()]))
    np.testing.assert_array_equal(normalised, modulated)


@pytest.mark.parametrize("name", NETWORKS)
def test_gammas_are_linear_in_the_embedding(name, rng):
    network = models.build(name, **SMALL, start="he", seed=1)
    z = rng.random((6, 4)).astype(np.float32)
    hidden = control.embeddings(network, z)
    head = network.get_layer("control").get_layer("gammas")
    kernel, bias = head.get_weights()
    table = film_parameters(network, z)
    gammas = table.pivot_table(index="condition", columns=["block", "feature"], values="gamma")
    np.testing.assert_allclose(hidden @ kernel + bias, gammas, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def runs(tones, tmp_path_factory):
    """Two untrained networks in run folders, read back; and how they were found."""
    settings, names = tones[0], ("cnn_complex", "cnn_complex_np")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNET_RESULTS", str(tmp_path_factory.mktemp("runs")))
        for name in names:
            untrained_run(settings, name)
        yield settings, [control.Run(settings, name, seed=0) for name in names]


def test_runs_are_told_apart_by_name_and_training(runs):
    settings, loaded = runs
    assert {run.name: run.training for run in loaded} == {
        "cnn_complex": "progressive conditions",
        "cnn_complex_np": "no progressive conditions",
    }
    with pytest.raises(ConfigError, match=r"cnn_complex-seed7.*make conditions PROFILE="):
        control.Run(settings, "cnn_complex", seed=7)
    with pytest.raises(ConfigError, match="signal settings"):
        control.Run(changed(settings, "signal", hop=128), "cnn_complex", seed=0)


@pytest.mark.parametrize(
    ("kinds", "progressive", "name", "words"),
    [
        (["one_hot"], 0.25, "cnn_simple", "progressive conditions"),
        (["one_hot"], 0, "cnn_simple", "no progressive conditions"),
        (["one_hot"], 0.25, "cnn_simple_np", "no progressive conditions"),
        (["one_hot", "one_hot", "zero"], 1, "cnn_simple", "progressive conditions, one_hot + zero"),
        (["pairs"], 1, "cnn_simple", "no progressive conditions, pairs"),
    ],
)
def test_training_in_words(kinds, progressive, name, words):
    train = {"conditions": kinds, "progressive": progressive}
    assert control.describe_training(train, VARIANTS[name]) == words


def test_embeddings_of_each_run_are_mapped_by_themselves(runs):
    _, loaded = runs
    table = control.map_embeddings(loaded, steps=5)
    assert len(table) == 2 * 5 * (len(INSTRUMENTS) + len(PAIRS))
    ends = table[table["share"] == 1]
    assert (ends[list(INSTRUMENTS)].sum(axis=1) == 1).all()
    middle = table[(table["share"] == 0.5) & (table["start"] != "silence")]
    assert (middle[list(INSTRUMENTS)].max(axis=1) == 0.5).all()
    assert list(dict.fromkeys(table["model"])) == ["cnn_complex", "cnn_complex_np"]
    assert table[["x", "y"]].notna().all(axis=None)
    assert ((table["x_share"] + table["y_share"]) <= 1 + 1e-9).all()
    for _, group in table.groupby("model"):
        silent = group[(group["start"] == "silence") & (group["share"] == 0)]
        assert not silent[list(INSTRUMENTS)].to_numpy().any() and len(silent) == 4
        assert len(silent[["x", "y"]].round(4).drop_duplicates()) == 1


# ------------------------------------------------------------------------------ tables, figures


@pytest.fixture(scope="module")
def measured(runs):
    """Everything that tables and figures describe, from separators with known answers."""
    (settings, loaded), rng = runs, np.random.default_rng(0)
    frames = {name: [] for name in control.MEASUREMENTS}
    for track in ("One & only", "Two"):
        stems = rng.normal(size=(4, 2000))
        song = np.concatenate([stems.sum(axis=0, keepdims=True), stems]).astype(np.float32)
        for run, curve in zip(loaded, (lambda z: z, np.sqrt), strict=True):
            free = {"curve": lambda z: 0 * z + 0.5, "leak": 0.02}
            system = known(song, curve=curve, leak=0.02, free=free)
            for name, what in control.MEASUREMENTS.items():
                frames[name].append(run.about(what.measure(system, song), track=track))
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return settings, {**joined, "embeddings": control.map_embeddings(loaded, steps=9)}


@pytest.mark.parametrize("name", control.MEASUREMENTS)
def test_tables_name_what_stands_behind_them(measured, name, tmp_path):
    settings, frames = measured
    table = shown.table(settings, name, frames[name])
    table.save(tmp_path)
    assert table.name == f"conditions_{name}" and table.caption.count(". ") == 1
    for words in ("8192 Hz mono", "2 test tracks", "seed 0", "C-U-Net CNN, complex", "rendered"):
        assert words in table.caption
    assert set(table.display["Trained with"]) == set(frames[name]["training"])
    # `make verify` finds each row by these columns.
    keys = [column for column in report.KEYS if column in table.frame]
    assert not table.frame.duplicated(keys).any()
    again = pd.read_csv(tmp_path / f"{table.name}.csv")
    assert report.compare(again, again) == (True, "equal")


def test_level_table_holds_the_faders_medians(measured):
    settings, frames = measured
    table = shown.table(settings, "level", frames["level"])
    row = table.frame.query("condition == '0.4 drums' and model == 'cnn_complex'")
    values = frames["level"].query("target == 'drums' and z == 0.4 and model == 'cnn_complex'")
    assert row["ratio_median"].item() == pytest.approx(values["ratio"].median())
    assert row["tracks"].item() == 2
    assert list(table.display)[2:] == [f"z = {level:g}" for level in control.LEVELS]
    assert len(table.display) == 2 * len(INSTRUMENTS)


def test_pair_table_shows_medians_with_quartiles(measured):
    settings, frames = measured
    table = shown.table(settings, "pairs", frames["pairs"])
    first = table.frame.iloc[0]
    texts = [f"{first[f'summed_db_{part}']:.2f}" for part in ("median", "quartile_1", "quartile_3")]
    cell = table.display["Sum of two estimates (dB)"][0]
    assert cell == "{} ({} to {})".format(*texts)


@pytest.mark.parametrize("name", [*control.MEASUREMENTS, "embeddings"])
def test_figures_are_equal_bytes_for_equal_data(measured, name, tmp_path):
    settings, frames = measured
    files = []
    for folder in ("a", "b"):
        figure = (
            shown.embedding_figure(settings, frames[name])
            if name == "embeddings"
            else shown.figure(settings, name, frames[name])
        )
        figure.save(tmp_path / folder)
        assert figure.canvas.get_suptitle() and figure.caption.count(". ") == 1
        assert "rendered" in figure.caption and "seed 0" in figure.caption
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert len(files[0]) == 3 and files[0] == files[1]


def test_a_level_far_off_does_not_hide_the_others(measured):
    settings, frames = measured
    far = frames["level"].assign(ratio=5 * frames["level"]["ratio"])
    figure = shown.figure(settings, "level", far)
    assert figure.canvas.axes[0].get_ylim()[1] == shown.HIGHEST_RATIO
    assert "outside the frame" in figure.caption
    assert "outside" not in shown.figure(settings, "level", frames["level"]).caption
