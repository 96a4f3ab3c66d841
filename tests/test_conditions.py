"""Condition vectors and their names."""

import numpy as np
import pytest

from cunet_lib.core.settings import CONDITION_KINDS, ConfigError
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models import conditions


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
    for text, told in (("vocals=loud", "must be a number"), ("vocals+vocals", "vocals twice")):
        with pytest.raises(ConfigError, match=told):
            conditions.parse(text)


def test_the_accompaniment_is_all_but_the_target():
    assert conditions.parse("accompaniment") == {"bass": 1.0, "drums": 1.0, "other": 1.0}
    assert conditions.parse("accompaniment=0.5+drums", target="drums") == {
        **{"bass": 0.5, "other": 0.5, "vocals": 0.5},
        "drums": 1.0,
    }
    with pytest.raises(ConfigError, match="names bass twice"):
        conditions.parse("accompaniment+bass")


def test_drawn_conditions_can_be_changed_without_changing_the_next(rng):
    for kind in CONDITION_KINDS:
        conditions.draw(kind, rng)[:] = 7
        assert conditions.draw(kind, rng).max() <= 1
