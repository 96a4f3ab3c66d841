"""Condition vectors and their names."""

import numpy as np
import pytest

from cunet_lib import conditions
from cunet_lib.config import INSTRUMENTS, ConfigError


def test_order_is_bass_drums_other_vocals():
    assert INSTRUMENTS == ("bass", "drums", "other", "vocals")
    np.testing.assert_array_equal(conditions.one_hot("vocals"), [0, 0, 0, 1])
    np.testing.assert_array_equal(conditions.all_one_hot()[1], conditions.one_hot("drums"))


def test_levels_and_labels():
    z = conditions.vector({"drums": 1.0, "vocals": 0.5})
    np.testing.assert_array_equal(z, [0, 1, 0, 0.5])
    assert conditions.label(z) == "drums + 0.5 vocals"
    assert conditions.label(np.zeros(4)) == "silence"


def test_unknown_instruments_and_levels_are_named():
    with pytest.raises(ConfigError, match="'flute'"):
        conditions.vector({"flute": 1})
    for level in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="within 0 and 1"):
            conditions.vector({"bass": level})
