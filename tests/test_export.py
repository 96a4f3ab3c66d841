"""docs/export.md: its code runs as it stands, and what it writes gives what the network gives."""

import re

import numpy as np
import tensorflow as tf
from conftest import ROOT

from cunet_lib.models.unet import build
from cunet_lib.models.weights import save_half


def test_exported_models_give_what_the_network_gives(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    network = build("cnn_complex", filters=2, start="he")
    save_half(network, tmp_path / "results" / "demo" / "models" / "cnn_complex.keras")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    mixture = rng.uniform(size=(1, 512, 128, 1)).astype(np.float32)
    condition = np.array([[0, 0, 0, 1]], np.float32)
    expected = np.asarray(names["network"]([mixture, condition]))
    saved = tf.saved_model.load("exported")
    np.testing.assert_allclose(saved.serve([mixture, condition]), expected, atol=1e-5)
    lite = tf.lite.Interpreter("cunet.tflite")
    lite.allocate_tensors()
    for each in lite.get_input_details():
        lite.set_tensor(each["index"], mixture if "mixture" in each["name"] else condition)
    lite.invoke()
    found = lite.get_tensor(lite.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
