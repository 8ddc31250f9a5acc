import numpy as np
import pytest

from finegrain.errors import ConfigError
from finegrain.hu import HURange, hu_to_mu, mu_to_hu


def test_every_integer_hu_survives_the_unit_range_exactly():
    hu = np.arange(-1024, 3072).astype(np.float32)
    np.testing.assert_array_equal(HURange().to_hu(HURange().to_unit(hu)), hu)


def test_unit_range_ends_at_zero_and_one_and_clips():
    unit = HURange().to_unit(np.array([-5000.0, -1024.0, 3071.0, 30000.0]))
    np.testing.assert_array_equal(unit, [0, 0, 1, 1])


def test_attenuation_and_hu_are_inverse_above_air():
    hu = np.linspace(-1000, 3000, 101)
    np.testing.assert_allclose(mu_to_hu(hu_to_mu(hu)), hu, atol=1e-9)


def test_water_is_zero_hu_and_nothing_attenuates_less_than_nothing():
    assert mu_to_hu(hu_to_mu(np.array([0.0])))[0] == 0
    assert hu_to_mu(np.array([-3000.0]))[0] == 0


def test_an_empty_range_is_refused():
    with pytest.raises(ConfigError, match="low < high"):
        HURange(100, 100)
