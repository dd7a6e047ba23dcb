"""The accountant against the definition and against known values."""

import math

import numpy as np
import pytest

from fedit_app.mkv.privacy import epsilon, mkv_mu


@pytest.mark.parametrize(("mu", "delta", "known"), [(1.0, 1e-5, 4.377), (0.5, 1e-5, 1.993)])
def test_known_values_of_the_gaussian_mechanism(mu, delta, known):
    assert epsilon(mu, delta=delta) == pytest.approx(known, abs=0.002)


def test_it_is_the_privacy_loss_of_two_gaussians():
    """delta(eps) = E max(0, 1 - exp(eps - loss)), the loss of N(mu, 1) against N(0, 1)."""
    mu = 2.0
    eps = epsilon(mu, delta=1e-3)
    x = np.linspace(-10, 14, 400_001)
    density = np.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
    loss = mu * x - mu**2 / 2
    delta = np.trapezoid(density * np.maximum(0, 1 - np.exp(eps - loss)), x)
    assert delta == pytest.approx(1e-3, rel=1e-3)


def test_more_mkvs_tell_more_and_more_noise_less():
    mu = mkv_mu(5, 4.0)

    assert mu == pytest.approx(2 * math.sqrt(12) / 4)
    assert 0 == epsilon(mu, 0) < epsilon(mu) < epsilon(mu, 4) < epsilon(mu, 100)
    assert epsilon(mu, 4) == pytest.approx(epsilon(2 * mu))
    assert epsilon(mkv_mu(5, 8.0)) < epsilon(mu)


def test_little_noise_is_no_privacy_and_no_overflow():
    assert 1e5 < epsilon(mkv_mu(5, 0.01), 100) < 1e9
    assert epsilon(1e-9) == 0
