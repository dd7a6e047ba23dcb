"""How much an uploaded MKV may tell, as (epsilon, delta): the accountant of clipping and noise.

Every vector of an MKV (per layer a key and a shift; v* - h0 and h0) is clipped to a norm c and gets
Gaussian noise with deviation z c in every element. Another request in the place of one changes each
of the m = 2 n_layers + 2 vectors by at most 2 c, all of them together by 2 sqrt(m) deviations / z:
the mechanism is mu-GDP with mu = 2 sqrt(m) / z (Dong, Roth and Su, arXiv 1905.02383), k of them
together sqrt(k) mu. That gives, for any epsilon (Balle and Wang, arXiv 1805.06530, theorem 8),

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)
"""

import math

from scipy.special import log_ndtr

DELTA = 1e-5
"""The delta for which epsilon is stated: less than one in the number of requests of a node."""


def mkv_mu(n_layers: int, noise: float) -> float:
    """mu of one MKV.

    Args:
        n_layers: edited layers.
        noise: deviation of the noise in clip norms, z > 0.
    """
    return 2 * math.sqrt(2 * n_layers + 2) / noise


def epsilon(mu: float, count: int = 1, delta: float = DELTA) -> float:
    """The smallest epsilon >= 0 that holds for `count` MKVs together.

    One request can change the others' MKVs of its node, too: their shifts are measured on what the
    ledger holds. So no MKV is left out of the count.

    Args:
        mu: of one MKV.
        count: how many; 0 tells nothing.
        delta: probability with which more may be told.
    """
    total = mu * math.sqrt(count)
    if not total or _delta(0.0, total) <= delta:
        return 0.0
    low, high = 0.0, total**2 / 2 + total * 40
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, total) > delta else (low, middle)
    return high


def _delta(eps: float, mu: float) -> float:
    first = log_ndtr(mu / 2 - eps / mu)
    second = eps + log_ndtr(-mu / 2 - eps / mu)
    return math.exp(first) - math.exp(min(second, first))
