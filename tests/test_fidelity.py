"""docs/fidelity.md: its claims are held by tests that exist; facts that no other test holds."""

import ast
import re
import shutil

import keras
import numpy as np
import pytest
import yaml
from conftest import ROOT, changed, untrained_run, write_tones

from cunet_lib.core.settings import Model, Separate, Signal, Train, load_profile
from cunet_lib.core.systems import INSTRUMENTS, ORACLES, UNETS
from cunet_lib.evaluation import evaluate as scoring
from cunet_lib.models import fast as kernels
from cunet_lib.models import unet as models
from cunet_lib.preprocess import tracks as stems
from cunet_lib.preprocess.store import build_store
from cunet_lib.separation import separator as separation

DOCUMENT = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
REFERENCE = re.compile(r"`tests/(test_\w+\.py)::(test_\w+)`")


def functions_of(path):
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rows():
    """Rows of the document's tables, without headings and rules, as lists of cells."""
    lines = re.sub(r"^\|.*\|\n\|[-| ]+\|$", "", DOCUMENT, flags=re.MULTILINE).splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]


def test_every_test_that_the_document_names_exists():
    named = REFERENCE.findall(DOCUMENT)
    assert len(named) > 20
    # docs/security.md names tests too, those of one file by their names alone.
    security = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    own = [("test_security.py", name) for name in re.findall(r"`(test_\w+)`", security)]
    assert len(own) >= 4
    for file, name in (*named, *own, *REFERENCE.findall(security)):
        assert name in functions_of(ROOT / "tests" / file), f"{file}::{name}"
    # Nothing is named in another way, which this test would not see.
    assert DOCUMENT.count("tests/") == len(named)
    # So are the parameter counts of the paper.
    for count in ("39,305,300", "9,826,325", "9,848,497", "12,165,445", "9,837,905", "10,419,925"):
        assert count in DOCUMENT


def test_every_line_of_the_document_names_its_test():
    assert len(rows()) > 20
    for cells in rows():
        # Settings of profiles have one test together.
        setting = re.fullmatch(r"`\w+\.\w+`", cells[0])
        assert setting or REFERENCE.search(cells[-1]), cells[0]


# ------------------------------------------------------------------------------ settings

PAPER_SETTINGS = {
    "signal": {"sample_rate": 8192, "n_fft": 1024, "hop": 256},
    "model": {
        **{"filters": 16, "blocks": 6, "patch_frames": 128, "start": "paper"},
        **{"dropout": 0.5, "control_dropout": 0.5},
    },
    "train": {
        **{"batch_size": 64, "steps_per_epoch": 2048, "unet_epochs": 1000, "cunet_epochs": 1000},
        **{"learning_rate": 1e-3, "beta_1": 0.5, "epsilon": 1e-7, "patience": 30},
        **{"schedule": "plateau", "lr_patience": 15, "lr_factor": 0.5, "min_delta": 1e-5},
        **{"min_learning_rate": 1e-5, "warmup_steps": 0, "conditions_per_mixture": 1},
        **{"conditions": ("one_hot",), "progressive": 0.25, "remix": 0.25},
    },
}
VALIDATION = {
    "ANiMAL - Easy Tiger",
    "Alexander Ross - Velvet Curtain",
    "Meaxic - Take A Step",
    "Music Delta - Disco",
    "North To Alaska - All The Same",
}


def test_musdb18_profile_has_the_papers_settings():
    settings = load_profile("musdb18")
    for section, values in PAPER_SETTINGS.items():
        assert {name: getattr(getattr(settings, section), name) for name in values} == values
    assert settings.patch_shape == (512, 128, 1)
    assert set(settings.data.validation) == VALIDATION


def test_what_the_papers_code_has_no_word_for_is_ours_and_named():
    """Settings beyond those of the paper, which the document lists as ours."""
    beyond = {
        *(set(Signal.model_fields) - set(PAPER_SETTINGS["signal"])),
        *(set(Model.model_fields) - set(PAPER_SETTINGS["model"])),
        *(set(Train.model_fields) - set(PAPER_SETTINGS["train"])),
        *Separate.model_fields,
    }
    for name in beyond:
        assert re.search(rf"[`.]{name}[`=]", DOCUMENT), name
    assert load_profile("musdb18").separate == Separate(overlap=0.0)


def test_document_lists_where_profiles_deviate():
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.*)$", DOCUMENT, re.MULTILINE)
    table = {name: [cell.strip() for cell in cells.split("|")[:3]] for name, cells in rows}
    deviating = set()
    for column, profile in ((1, "study"), (2, "demo")):
        given = yaml.safe_load((ROOT / f"notebooks/profiles/{profile}.yaml").read_text("utf-8"))
        settings = load_profile(profile)
        for section, values in PAPER_SETTINGS.items():
            for name, papers in values.items():
                place, value = f"{section}.{name}", getattr(getattr(settings, section), name)
                for shown, true in ((0, papers), (column, value)) if place in table else ():
                    text = table[place][shown]
                    assert text == true if isinstance(true, str) else float(text) == true, place
                if value != papers:
                    deviating.add(place)
                    # What deviates is written down in the profile, not hidden in a default.
                    assert name in given[section]
    assert deviating == set(table)


# ------------------------------------------------------------------------------ networks


def layers_of(model):
    """Layers of a model and of the models inside it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


@pytest.mark.parametrize("name", ["unet_vocals", "dense_complex", "cnn_simple"])
def test_paper_start_draws_every_kernel_from_a_normal_of_two_hundredths(name):
    found = 0
    for layer in layers_of(models.build(name, start="paper", seed=2)):
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (np.asarray(layer.gamma) == 1).all() and (np.asarray(layer.beta) == 0).all()
        if not hasattr(layer, "kernel"):
            continue
        assert isinstance(layer.kernel_initializer, keras.initializers.RandomNormal)
        kernel = np.asarray(layer.kernel)
        deviation = 0.02 * 4 / np.sqrt(2 * kernel.size)
        assert kernel.std() == pytest.approx(0.02, abs=deviation), layer.name
        assert abs(kernel.mean()) < 0.02 * 4 / np.sqrt(kernel.size), layer.name
        assert not np.asarray(layer.bias).any()
        found += 1
    assert found == 12 + (5 if name in PAPER_UNITS else 0)


@pytest.mark.parametrize("name", ["unet_bass", "cnn_complex"])
def test_blocks_are_those_of_the_paper(name):
    model = models.build(name)
    for block in range(1, 7):
        encoder = model.get_layer(f"encoder_{block}_convolution")
        decoder = model.get_layer(f"decoder_{block}_convolution")
        assert type(encoder) is kernels.Conv2D
        assert isinstance(decoder, keras.layers.Conv2DTranspose)
        assert encoder.filters == 16 * 2 ** (block - 1)
        assert decoder.filters == (256, 128, 64, 32, 16, 1)[block - 1]
        for layer in (encoder, decoder):
            assert layer.kernel_size == (5, 5) and layer.strides == (2, 2)
            assert layer.padding == "same"
        for part in ("encoder", "decoder"):
            assert model.get_layer(f"{part}_{block}_normalization").momentum == 0.9
        assert model.get_layer(f"encoder_{block}").negative_slope == pytest.approx(0.2)
    assert model.get_layer("mask").activation is keras.activations.sigmoid
    estimate = model.get_layer("estimate")
    factors = {value._keras_history.operation.name for value in estimate.input}
    assert factors == {"mixture", "mask"}


PAPER_UNITS = {
    "dense_simple": (16, 64, 256),
    "dense_complex": (16, 256, 1024),
    "cnn_simple": (16, 32, 64),
    "cnn_complex": (32, 64, 256),
}


@pytest.mark.parametrize(("name", "units"), PAPER_UNITS.items())
def test_control_networks_are_those_of_the_paper(name, units):
    control, film = name.split("_")
    network = models.build(name).get_layer("control")
    order = [layer.name for layer in network.layers]
    for place, size in enumerate(units, start=1):
        layer = network.get_layer(f"control_{place}")
        assert layer.activation is keras.activations.relu
        if control == "dense":
            assert layer.units == size
        else:
            assert (layer.filters, layer.kernel_size) == (size, (4,))
            assert layer.padding == ("same", "same", "valid")[place - 1]
        after = [f"control_{place}_dropout", f"control_{place}_normalization"]
        if place == 1:
            assert not set(after) & set(order)
        else:  # dropout first, then normalisation
            here = order.index(f"control_{place}")
            assert order[here + 1 : here + 3] == after
            assert network.get_layer(after[0]).rate == 0.5
    for head in ("gammas", "betas"):
        layer = network.get_layer(head)
        assert layer.activation is keras.activations.linear
        assert layer.units == (1008 if film == "complex" else 6)


# ------------------------------------------------------------------------------ no peeking


def test_named_validation_tracks_are_held_out_of_training(roots):
    """The names of the paper's list, in a corpus that has them among others."""
    settings = load_profile("smoke")
    write_tones(settings.paths.corpus, train=7, test=2, seconds=1.0)
    folders = sorted((settings.paths.corpus / "train").iterdir())
    for folder, name in zip(folders, sorted(VALIDATION), strict=False):
        folder.rename(folder.with_name(name))
    settings = changed(settings, "data", validation=tuple(VALIDATION))
    store = build_store(settings, workers=1)
    names = {
        split: {entry.name for entry in store.split(split)} for split in ("train", "valid", "test")
    }
    assert names["valid"] == VALIDATION
    assert [len(names[split]) for split in ("train", "valid", "test")] == [2, 5, 2]
    assert not names["train"] & names["valid"] and not names["test"] & names["train"]
    assert {source.name for source in stems.list_sources(settings)} == set().union(*names.values())


class Guarded(np.ndarray):
    """All stems of a track, of which only row 0, the mixture, may be read."""

    def __getitem__(self, key):
        if not isinstance(key, int) or key != 0:
            raise AssertionError(f"a reference was read: [{key}]")
        return np.asarray(self)[0]

    def __array_function__(self, *_):
        raise AssertionError("the references were read as a whole")

    def __array_ufunc__(self, *_, **__):
        raise AssertionError("the references were read as a whole")


@pytest.fixture
def system_and_audio(roots, request):
    """A system of the study and the stems of a test track, after its corpus and store are gone."""
    settings = load_profile("smoke")
    write_tones(settings.paths.corpus, train=2, test=1, seconds=1.5)
    store = build_store(settings, workers=1)
    audio = np.array(store.audio(store.split("test")[0]))
    for name in UNETS if request.param == "unet" else (request.param,):
        untrained_run(settings, name)
    shutil.rmtree(settings.paths.data)
    return separation.System(settings, request.param, seed=0), audio


@pytest.mark.parametrize("system_and_audio", ["unet", "cnn_complex"], indirect=True)
def test_systems_separate_where_no_reference_can_be_read(system_and_audio):
    """No stem is on disk any more, and those in memory may not be touched."""
    system, audio = system_and_audio
    expected = system(audio[0])
    assert expected.shape == (len(INSTRUMENTS), audio.shape[1]) and expected.any()
    np.testing.assert_array_equal(
        scoring.estimates_of(system, audio.copy().view(Guarded)), expected
    )
    poisoned = audio.copy()
    poisoned[1:] = np.nan
    np.testing.assert_array_equal(scoring.estimates_of(system, poisoned), expected)


def test_the_guard_of_the_references_works(tones):
    """An oracle, which may read them, trips it; so a peeking system would."""
    settings, store = tones
    audio = np.array(store.audio(store.split("test")[0])).view(Guarded)
    for name in ORACLES:
        with pytest.raises(AssertionError, match="read"):
            scoring.estimates_of(scoring.Oracle(name, settings.signal), audio)
