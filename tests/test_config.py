"""Profiles: valid ones load, everything else is one sentence that names the setting."""

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cunet_lib.core.settings import ConfigError, Profile, load_profile, profile_names


def leaves(model, prefix=""):
    """Every setting of a profile as ``section.key``."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


SETTINGS = sorted(leaves(Profile))


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and len(text) < 400


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_under_its_own_name(name):
    settings = load_profile(name)
    assert settings.name == name
    assert settings.patch_shape == (settings.signal.bins, settings.model.patch_frames, 1)
    assert settings.paths.results.name == name
    assert settings.paths.data.name == (settings.like or name)


def test_settings_cannot_be_changed_afterwards():
    settings = load_profile("smoke")
    with pytest.raises(ValueError, match="frozen"):
        settings.model.filters = 3


def test_overrides_change_what_they_name_and_nothing_else():
    plain = load_profile("smoke").model_dump()
    changed = load_profile("smoke", "train.learning_rate=3e-4 model.filters=5").model_dump()
    assert changed["train"].pop("learning_rate") == 3e-4
    assert changed["model"].pop("filters") == 5
    del plain["train"]["learning_rate"], plain["model"]["filters"]
    assert changed == plain
    parts = ["data.seed=4", "train.conditions=[one_hot,zero]"]
    assert load_profile("smoke", " ".join(parts)) == load_profile("smoke", parts)
    assert load_profile("smoke", parts).train.conditions == ("one_hot", "zero")


def test_a_number_of_seeds_is_that_of_what_the_paper_has_and_of_what_ships():
    seeds = load_profile("study", "seeds=2").seeds
    assert set(seeds.values()) == {2} and {"unet", "dense_simple", "shares"} < set(seeds)
    assert "dense_simple_np" not in seeds and "shares_1" not in seeds
    assert "shares" not in load_profile("musdb18", "seeds=2").seeds


def test_a_profile_like_another_differs_where_it_says_and_shares_the_data():
    study, wide = load_profile("study"), load_profile("study_wide", "train.patience=3")
    assert wide.model.filters == 16 and wide.model.start == study.model.start == "he"
    assert wide.seeds == {"unet": 1, "dense_complex": 1} != study.seeds
    assert wide.train == study.train.model_copy(update={"patience": 3})
    assert wide.paths.store == study.paths.store and wide.paths.results != study.paths.results


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("like: nope", "'nope' is no profile; there are: beyond"),
        ("like: [demo]", "is no profile; there are: beyond"),
        ("like: demo\nsignal: {hop: 128}", "shares the data of demo: it cannot have signal"),
    ],
)
def test_a_profile_like_another_cannot_change_its_data(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_profile(str(tmp_path / "mine.yaml"))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "override"), [("study_wide", "data.seed=5"), ("demo", "like=study")]
)
def test_overrides_cannot_change_the_data_of_another_profile_either(name, override):
    words = rf"{name}\.yaml shares the data of study: it cannot have data\."
    with pytest.raises(ConfigError, match=words):
        load_profile(name, override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rte=1", ("learning_rte", "learning_rate")),
        ("data.test=[a]", ("test and stems belong to source: folder",)),
        ("data.stems={guitar: [a]}", ("data.stems", "guitar")),
        ("trian.patience=1", ("trian", "train")),
        ("train.learning_rate=fast", ("train.learning_rate", "fast")),
        ("train.warmup_steps=1", ("train.warmup_steps = 1", "train.schedule = cosine")),
        ("train.conditions=[one_hot,chords]", ("train.conditions", "chords", "pairs")),
        ("train.conditions=zero", ("train.conditions", "zero")),
        ("model.patch_frames=100", ("model.patch_frames", "100", "model.blocks")),
        ("signal.n_fft=1000", ("n_fft", "1000", "power of two")),
        ("signal.hop=1024", ("hop", "1024", "n_fft")),
        ("data.source=mp3", ("data.source", "mp3", "rendered")),
        ("separate.overlap=1", ("separate.overlap", "1")),
        ("evaluate.hop_seconds=1e-5", ("evaluate.hop_seconds", "0.01")),
        ("train.patience", ("train.patience", "section.key=value")),
        ("train.patience=[1", ("train.patience=[1", "YAML")),
    ],
)
def test_bad_override_names_the_setting_and_the_remedy(override, words):
    with pytest.raises(ConfigError) as caught:
        load_profile("smoke", [override])
    assert one_sentence(caught), caught.value
    assert [word for word in words if word not in str(caught.value)] == []


def test_warmup_must_end_before_the_training():
    given = "train.schedule=cosine train.unet_epochs=1 train.steps_per_epoch=8 train.warmup_steps="
    assert load_profile("smoke", f"{given}7").train.warmup_steps == 7
    with pytest.raises(ConfigError, match=r"fewer steps than a training has \(8\)"):
        load_profile("smoke", f"{given}8")


def test_missing_profiles_and_settings_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match=r"No profile 'nope'; there are: .*smoke"):
        load_profile("nope")
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        load_profile(str(tmp_path / "absent.yaml"))
    (tmp_path / "bad.yaml").write_text("title: x\ndata: {source: rendered}\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: .*data\.validation"):
        load_profile(str(tmp_path / "bad.yaml"))


def test_hash_follows_the_named_sections_only():
    plain = load_profile("smoke")
    other = load_profile("smoke", "model.filters=3")
    assert plain.section_hash("data", "signal") == other.section_hash("data", "signal")
    assert plain.section_hash("model") != other.section_hash("model")


def test_roots_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CUNET_DATA", str(tmp_path / "d"))
    monkeypatch.delenv("CUNET_RESULTS", raising=False)
    paths = load_profile("smoke").paths
    assert paths.corpus == tmp_path / "d" / "smoke" / "corpus"
    assert paths.run("dense_simple", 3) == ROOT / "results/smoke/runs/dense_simple-seed3"


# Any scalar that YAML can hold, for any setting, is either accepted or refused in one sentence.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12),
)


@given(setting=st.sampled_from(SETTINGS), value=SCALARS)
def test_any_override_is_accepted_or_refused_in_one_sentence(setting, value):
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
    override = f"{setting}={text}"
    try:
        settings = load_profile("smoke", [override])
    except ConfigError as error:
        assert "\n" not in str(error) and str(error).endswith(".")
    else:
        # What was accepted can be written down and read back: run records rely on it.
        assert Profile.model_validate(settings.model_dump(mode="json")) == settings
        step = 2**settings.model.blocks
        assert settings.signal.bins % step == settings.model.patch_frames % step == 0


@given(
    blocks=st.integers(2, 8),
    frames=st.integers(1, 9).map(lambda n: 64 * n) | st.integers(4, 600),
    power=st.integers(6, 14),
    hop=st.integers(1, 1024),
)
def test_accepted_shapes_survive_the_network(blocks, frames, power, hop):
    """Sizes are accepted exactly if every halving of the encoder is whole and the STFT inverts."""
    n_fft = 2**power
    overrides = f"model.blocks={blocks} model.patch_frames={frames} "
    overrides += f"signal.n_fft={n_fft} signal.hop={hop}"
    sound = (n_fft // 2) % 2**blocks == 0 and frames % 2**blocks == 0 and 4 * hop <= 3 * n_fft
    if sound:
        settings = load_profile("smoke", overrides)
        assert settings.patch_shape == (n_fft // 2, frames, 1)
    else:
        with pytest.raises(ConfigError):
            load_profile("smoke", overrides)
