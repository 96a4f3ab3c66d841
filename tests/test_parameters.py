"""Parameters of notebooks: what papermill injects is checked by the notebook itself."""

import sys
from dataclasses import replace

import nbformat
import pytest
from conftest import ROOT, ran

from cunet_lib import cli
from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import VARIANTS
from cunet_lib.workflow import parameters, run
from cunet_lib.workflow.parameters import check_injected, check_parameters

DECLARED = 'profile = "demo"  # x=1\nvariant = "dense_simple"\nseed = 0\nrate = 0.5\n'
DECLARED += 'name = "0"\nmodel = ""'


def history(*injected, before=("",)):
    return [*before, DECLARED, "\n".join(["# Parameters", *injected, ""]), "check_injected()"]


def test_nothing_is_said_of_valid_parameters_or_none():
    check_injected(history('variant = "cnn_simple"', "seed = 7", "rate = 1"))
    check_injected(history())
    check_injected(["", DECLARED, "check_injected()"])
    check_injected([])
    check_injected()  # no kernel here


def test_later_cells_and_repeated_runs_change_nothing():
    check_injected([*history("seed = 7"), "x = 1", "check_injected()"])
    twice = history("seed = 7") + history("sede = 7")[1:]
    with pytest.raises(ConfigError, match="'sede'"):
        check_injected(twice)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sede = 7", ("'sede'", "valid: profile, variant, seed, rate, name, model")),
        ('seed = "7x"', ("seed", "int", "'7x'")),
        ("seed = -1", ("seed", "greater than or equal to 0", "-1")),
        ("name = 0", ("name", "string", "-r")),
        ('model = "../up"', ("model", "pattern", "'../up'")),
        ('variant = "dense"', ("variant", "'dense_simple', 'dense_complex'", "given: 'dense'")),
        ("rate = float('nan')", ("rate", "plain value", "nan")),
        ("variant = None", ("variant", "'dense_simple'", "None")),
        ("rate = None", ("rate", "number", "None")),
    ],
)
def test_bad_injected_parameter_is_one_sentence(line, words):
    with pytest.raises(ConfigError) as caught:
        check_injected(history(line))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 1


def test_command_knows_the_same_choices():
    source = ROOT / "notebooks" / "02_train_unet.ipynb"
    with pytest.raises(ConfigError, match=r"instrument of 02_train_unet: .* 'bass', 'drums'"):
        check_parameters(source, {"instrument": "cello"})
    assert check_parameters(source, {"instrument": "bass"}) == {"instrument": "bass"}


@pytest.mark.parametrize(
    ("part", "value", "there"),
    [
        ("film", "wide", "simple, complex"),
        ("control", "gated", "dense, cnn, small"),
        ("placement", "everywhere", "encoder, decoder"),
    ],
)
def test_a_variant_that_the_models_do_not_have_is_refused_before_any_stage(
    part, value, there, monkeypatch
):
    odd = replace(VARIANTS["dense_simple"], **{part: value})
    monkeypatch.setattr(parameters, "VARIANTS", {**VARIANTS, "odd": odd})
    with pytest.raises(ConfigError) as error:
        check_parameters(ROOT / "notebooks" / "00_corpus.ipynb", {})
    text = f"Variant odd of cunet_lib/core/systems.py has the {part} {value!r}; there are: {there}."
    assert str(error.value) == text


def test_a_film_that_its_control_network_does_not_have_is_refused_too(monkeypatch):
    odd = replace(VARIANTS["dense_simple"], control="small")
    monkeypatch.setattr(parameters, "VARIANTS", {"odd": odd})
    with pytest.raises(ConfigError, match=r"odd .* has the film 'simple'; there are: complex"):
        parameters.check_variants()


@pytest.mark.parametrize("steps", [("compressed",), ("shares", "wide"), ("share",)])
def test_steps_beyond_the_paper_are_taken_in_their_order(monkeypatch, steps):
    odd = replace(VARIANTS["shares"], beyond=steps)
    monkeypatch.setattr(parameters, "VARIANTS", {"odd": odd})
    with pytest.raises(ConfigError, match=r"odd .*must be the first of \('shares', 'compressed'"):
        parameters.check_variants()


def test_shares_with_film_in_the_encoder_are_refused(monkeypatch):
    odd = replace(VARIANTS["shares"], placement="encoder")
    monkeypatch.setattr(parameters, "VARIANTS", {"odd": odd})
    with pytest.raises(ConfigError, match=r"odd .* has shares.* must be 'decoder', not 'encoder'"):
        parameters.check_variants()


def test_papermill_itself_fails_in_the_first_cell(tmp_path):
    source, copy = ROOT / "notebooks" / "00_corpus.ipynb", tmp_path / "out.ipynb"
    roots = {"CUNET_DATA": tmp_path / "data", "CUNET_RESULTS": tmp_path / "results"}
    command = (sys.executable, "-m", "papermill", source, copy, "-p", "sede", "1")
    # Of this checkout, whichever one is installed.
    done = ran(*command, cwd=tmp_path, PYTHONPATH=ROOT, **roots)
    assert done.returncode != 0
    for words in ("no parameter 'sede'", "valid: profile, overrides"):
        assert words in done.stderr, done.stderr[-2000:]
    # The sentence takes the place of the calls that led to it.
    shown = done.stderr.partition("Exception encountered")[2]
    assert "check_injected" not in shown and len(shown.splitlines()) < 8, shown
    assert not (tmp_path / "data").exists() and not (tmp_path / "results").exists()
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    (failed,) = [
        cell.source
        for cell in cells
        if any(output.output_type == "error" for output in cell.outputs)
        and not cell.source.startswith("# Parameters")
    ]
    assert "check_injected()" in failed and "matplotlib" not in failed


def test_a_profile_by_its_path_is_the_same_for_the_notebook(tmp_path, monkeypatch):
    """Which runs in a folder of its own."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run_stage", lambda _, given, **__: asked.append(given) or True)
    assert cli.main(["run", "00_corpus", "--profile", "mine.yaml"]) == 0
    assert asked[0]["profile"] == str(tmp_path / "mine.yaml")
