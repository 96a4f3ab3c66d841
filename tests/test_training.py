"""A training run and what it leaves behind."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import changed

from cunet_lib.core.settings import load_profile
from cunet_lib.models import unet as models
from cunet_lib.models.weights import load
from cunet_lib.signal.spectral import graph_magnitude, graph_spectrum
from cunet_lib.train import training
from cunet_lib.train.callbacks import SaveBest


@pytest.fixture(scope="module")
def run(tones, tmp_path_factory):
    settings, store = tones
    folder = tmp_path_factory.mktemp("run")
    lines = []
    record = training.train(
        settings, store, "dense_complex", seed=0, folder=folder, report=lines.append
    )
    return settings, store, folder, record, lines


def test_run_folder_holds_all_that_explains_the_model(run):
    settings, store, folder, record, lines = run
    history = pd.read_csv(folder / "history.csv")
    columns = "epoch loss val_loss learning_rate seconds patches_per_second"
    assert list(history) == columns.split()
    assert len(history) == record["epochs"] == len(lines) == settings.train.cunet_epochs
    assert record == json.loads((folder / "run.json").read_text())
    # pandas reads the last digit of a decimal as it likes.
    assert record["best_val_loss"] == pytest.approx(history["val_loss"].min(), rel=1e-14)
    assert record["best_epoch"] == history["val_loss"].idxmin() + 1
    assert record["store"] == store.hash
    assert record["steps"] == settings.train.steps_per_epoch * settings.train.cunet_epochs
    film = pd.read_csv(folder / "film.csv")
    assert set(film["instrument"]) == {"bass", "drums", "other", "vocals"}
    assert not list(folder.glob(".*partial*"))


def test_kept_weights_are_those_of_the_best_epoch(run):
    settings, store, folder, record, _ = run
    network = load(folder / "model.keras")
    trainer = training.WaveformModel(network, settings.signal)
    trainer.compile(loss=training.magnitude_error(settings.signal))
    inputs, target = training.validation_batch(store, settings, model="dense_complex").pair(
        conditioned=True
    )
    loss = trainer.evaluate(inputs, target, batch_size=settings.train.batch_size, verbose=0)
    assert loss == pytest.approx(record["best_val_loss"], rel=1e-4)


def test_shares_are_trained_as_they_separate(tones, tmp_path):
    """One pass for the four rows of a mixture gives what the saved network gives each."""
    settings, store = tones
    settings = changed(settings, "train", conditions_per_mixture=4, batch_size=8)
    record = training.train(
        settings, store, "shares", seed=0, folder=tmp_path / "run", report=lambda line: None
    )
    network, signal = load(tmp_path / "run" / "model.keras"), settings.signal
    trainer = training.compiled(network, settings)
    validation = training.validation_batch(store, settings, model="shares")
    inputs, target = validation.pair(conditioned=True)
    loss = trainer.evaluate(inputs, target, batch_size=settings.train.batch_size, verbose=0)
    assert loss == pytest.approx(record["best_val_loss"], rel=1e-4)
    magnitude = graph_magnitude(inputs[0], signal)
    masks = models.mask_model(network)([np.asarray(magnitude), inputs[1]])
    spectra = (graph_spectrum(waveforms, signal) for waveforms in (target, inputs[0]))
    wanted, mixture = (np.array(real) + 1j * np.array(imag) for real, imag in spectra)
    error = np.abs(wanted - np.asarray(masks)[..., 0] * mixture)
    assert np.sqrt((error**2).mean(axis=(1, 2))).mean() == pytest.approx(loss, rel=1e-3)


def test_only_the_best_epoch_is_kept(tmp_path):
    network = models.build("unet_bass", shape=(16, 16, 1), filters=1, blocks=2)
    save = SaveBest(network, tmp_path / "model.keras")
    bias = network.get_layer("decoder_1_convolution").bias
    for epoch, loss in enumerate((3.0, 1.0, 2.0, float("nan"))):
        bias.assign(np.full(bias.shape, epoch))
        save.on_epoch_end(epoch, {"val_loss": loss})
    kept = load(tmp_path / "model.keras").get_layer("decoder_1_convolution").bias
    np.testing.assert_array_equal(np.asarray(kept), 1.0)


def test_optimiser_is_adam_with_the_profiles_numbers(tones, tmp_path, monkeypatch):
    class Asked(Exception):
        """Carries what the optimiser was asked for, and ends the training there."""

    def adam(rate, **options):
        raise Asked(rate, options)

    settings, store = tones
    numbers = {"learning_rate": 2e-3, "beta_1": 0.4, "epsilon": 1e-9}
    monkeypatch.setattr(training, "Adam", adam)
    with pytest.raises(Asked) as asked:
        settings = changed(settings, "train", **numbers)
        training.train(settings, store, "unet_bass", seed=0, folder=tmp_path / "run")
    assert asked.value.args == (2e-3, {"beta_1": 0.4, "epsilon": 1e-9})


def test_loss_compares_magnitudes_with_the_target_waveform(tones, rng):
    settings, _ = tones
    audio = rng.normal(size=(2, settings.patch_samples)).astype(np.float32)
    loss = training.magnitude_error(settings.signal)
    magnitudes = training.graph_magnitude(audio, settings.signal)
    assert float(loss(audio, magnitudes)) == 0
    assert float(loss(audio, magnitudes + 0.5)) == pytest.approx(0.5, rel=1e-5)


def test_loss_of_shares_is_the_mean_over_patches_of_a_root_mean_square(tones, rng):
    settings, _ = tones
    audio = rng.normal(size=(2, settings.patch_samples)).astype(np.float32)
    loss = training.complex_error(settings.signal)
    spectrum = np.stack(training.graph_spectrum(audio, settings.signal), axis=1)
    assert float(loss(audio, spectrum)) == pytest.approx(0, abs=1e-5)
    wrong = spectrum.copy()
    wrong[0] += np.array([3.0, 4.0])[:, None, None]
    assert float(loss(audio, wrong)) == pytest.approx(5 / 2, rel=1e-4)
    wrong = spectrum.copy()
    wrong[1, 0, 3, 2] += 6.0
    bins = spectrum[0, 0].size
    assert float(loss(audio, wrong)) == pytest.approx(6 / np.sqrt(bins) / 2, rel=1e-4)


def test_cosine_schedule_ends_at_the_minimum(tones):
    settings, _ = tones
    train = settings.train
    schedule = training._learning_rate(changed(settings, "train", schedule="cosine"), epochs=3)
    steps = 3 * train.steps_per_epoch
    assert float(schedule(0)) == pytest.approx(train.learning_rate)
    assert float(schedule(steps)) == pytest.approx(train.min_learning_rate, rel=1e-3)


def test_warmup_rises_to_the_rate_and_the_cosine_takes_the_rest(tones):
    settings, _ = tones
    train = settings.train
    update = {"schedule": "cosine", "warmup_steps": 2, "steps_per_epoch": 4}
    schedule = training._learning_rate(changed(settings, "train", **update), epochs=3)
    rates = [float(schedule(step)) for step in range(13)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(train.learning_rate / 2)
    assert max(rates) == rates[2] == pytest.approx(train.learning_rate)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[12] == pytest.approx(train.min_learning_rate, rel=1e-3)


def test_mask_and_control_network_stay_in_float32():
    model = models.build("dense_complex", precision="mixed_bfloat16")
    assert model.output.dtype == "float32"
    assert model.get_layer("mask").compute_dtype == "float32"
    assert model.get_layer("encoder_3_convolution").compute_dtype == "bfloat16"
    assert all(weight.dtype == "float32" for weight in model.weights)
    control = model.get_layer("control")
    assert {layer.compute_dtype for layer in control.layers} == {"float32"}


def test_musdb18_takes_the_gpu_s_speed_where_there_is_one(monkeypatch):
    settings = load_profile("musdb18")
    monkeypatch.setattr(training, "gpus", lambda: ["a GPU"])
    assert training.precision_of(settings) == "mixed_bfloat16" and training._jit(settings)
    monkeypatch.setattr(training, "gpus", list)
    assert not training._jit(settings)
