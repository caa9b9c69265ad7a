"""The contract of statistics: it finds what breaks it."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest

from scalable.errors import InputError
from scalable.kernels import period, statistic, structure
from scalable.kernels.curve_sums import MEAN_FLUX, SIGMA
from scalable.kernels.statistic import Float, Statistic
from scalable.testing import check_statistic


def whole(function: object, **more: object) -> Statistic:
    """Return a statistic of whole curves, one at a time, from a function of flux."""

    def finalize(flux: Float, err: Float, mjd: Float, offsets: Float) -> Float:
        return np.array([function(flux[a:b]) if b > a else np.nan for a, b in zip(offsets[:-1], offsets[1:], strict=True)])

    return Statistic("Own", "own", finalize, **more)


def test_a_mean_of_ones_own_keeps_the_contract() -> None:
    check_statistic(whole(np.mean, unit="value"))
    check_statistic(whole(lambda flux: (flux**2).mean(), unit="value**2"))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (whole(np.mean), "must scale as its unit"),
        (whole(lambda flux: flux[0], unit="value"), "order of points must not matter"),
        (Statistic("Own", "own", lambda flux, err, mjd, offsets: np.full(len(offsets) - 1, flux.mean()), "value"), "no value"),
        (Statistic("Own", "own", lambda flux, err, mjd, offsets: np.ones((len(offsets) - 1, 2))), "one number for each curve"),
        (whole(lambda flux: np.nan), "gives no number"),
        (replace(MEAN_FLUX, combine=lambda a, b: (a + b) / 2), "parts merged"),
        (replace(SIGMA, finalize=lambda sums: np.nan_to_num(sums[:, 0])), "no value"),
        (replace(whole(np.mean, unit="value"), combine=np.add), "there is no chunk"),
    ],
)
def test_a_statistic_that_breaks_a_promise_is_named_with_it(broken: Statistic, promise: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s){broken.name}.*{promise}"):
        check_statistic(broken)


def test_a_result_of_another_length_is_refused_with_what_was_needed() -> None:
    with pytest.raises(InputError, match=r"'Own' gave an array of shape \(\d+,\) for 37 light curves; give one number for each"):
        check_statistic(Statistic("Own", "own", lambda flux, err, mjd, offsets: flux))


def test_a_statistic_that_sees_other_curves_is_found() -> None:
    def ranked(flux: Float, err: Float, mjd: Float, offsets: Float) -> Float:
        means = np.array([flux[a:b].mean() if b > a else np.nan for a, b in zip(offsets[:-1], offsets[1:], strict=True)])
        return means - (np.nanmean(means) if np.isfinite(means).any() else 0)

    with pytest.raises(AssertionError, match="must not depend on the others"):
        check_statistic(Statistic("Ranked", "own", ranked, "value"))


@pytest.mark.parametrize("module", [statistic, period, structure])
def test_examples_in_docstrings_do_what_they_say(module: object) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
