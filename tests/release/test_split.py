"""Splits follow from position and salt alone, are apart by the guard band, and say how a random one would leak."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from scalable.errors import SurveyError
from scalable.release.recipe import Split
from scalable.release.split import Part, check_split, leaks, random_leaks, split_rows


def sky(n: int, *, seed: int, ra: float = 150.0, dec: float = 2.0, width: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return positions spread evenly over a circle [deg]."""
    rng = np.random.default_rng(seed)
    around = SkyCoord(ra, dec, unit=u.deg).directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, width * np.sqrt(rng.random(n)) * u.deg
    )
    return around.ra.deg, around.dec.deg


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, 41.8), (45.0, 89.0), (270.0, -89.3)])
def test_no_row_is_within_the_guard_band_of_another_split(ra: float, dec: float) -> None:
    split = Split(order=9, guard_arcsec=30, train=0.6, validation=0.2, test=0.2)
    positions = sky(6000, seed=1, ra=ra, dec=dec)
    parts, _ = split_rows(split, np.arange(6000), *positions)
    coordinates = SkyCoord(*positions, unit=u.deg)
    for part in (Part.TRAIN, Part.VALIDATION, Part.TEST):
        mine, others = coordinates[parts == part], coordinates[(parts != part) & (parts != Part.GUARD)]
        assert len(mine) > 50
        _, apart, _ = mine.match_to_catalog_sky(others)
        assert apart.arcsec.min() > 30
    assert leaks(parts, *positions, radius_arcsec=30) == 0
    # A band of 30 arcsec, up to 60 where corners must be safe, along pixels 412 arcsec wide.
    assert np.count_nonzero(parts == Part.GUARD) < 0.5 * len(parts)


def test_leaks_are_counted_as_astropy_counts_them() -> None:
    ra, dec = sky(4000, seed=2, width=0.3)
    split = Split(order=9, guard_arcsec=20, random=True)
    parts, _ = split_rows(split, np.arange(4000), ra, dec)
    first, second, _, _ = SkyCoord(ra, dec, unit=u.deg).search_around_sky(SkyCoord(ra, dec, unit=u.deg), 20 * u.arcsec)
    leaking = first[(parts[first] != parts[second]) & (parts[first] != Part.TRAIN)]
    expected = len(np.unique(leaking))
    assert expected > 0
    assert leaks(parts, ra, dec, radius_arcsec=20) == expected
    assert random_leaks(split.model_copy(update={"random": False}), np.arange(4000), ra, dec) == expected


def test_rows_that_are_added_change_no_other() -> None:
    ra, dec = sky(3000, seed=3)
    split = Split(order=9, guard_arcsec=20)
    whole = split_rows(split, np.arange(3000), ra, dec)
    for few in (slice(0, 1000), slice(1, None, 7)):
        some = split_rows(split, np.arange(3000)[few], ra[few], dec[few])
        np.testing.assert_array_equal(some[0], whole[0][few])
        np.testing.assert_array_equal(some[1], whole[1][few])


def test_shares_are_about_those_asked_for_and_a_salt_deals_anew() -> None:
    ra, dec = sky(20_000, seed=4, width=40.0)
    split = Split(order=6, guard_arcsec=1)
    parts, folds = split_rows(split, np.arange(20_000), ra, dec)
    shares = np.bincount(parts, minlength=4) / len(parts)
    np.testing.assert_allclose(shares[:3], (0.8, 0.1, 0.1), atol=0.03)
    np.testing.assert_allclose(np.bincount(folds) / len(folds), 0.2, atol=0.04)
    again, _ = split_rows(split.model_copy(update={"salt": "other"}), np.arange(20_000), ra, dec)
    assert np.count_nonzero(again != parts) > 3000


def test_a_guard_band_too_wide_for_its_pixels_is_refused_with_the_order_that_fits() -> None:
    with pytest.raises(SurveyError, match="take order 8 or less"):
        check_split(Split(order=12, guard_arcsec=100))
    check_split(Split(order=8, guard_arcsec=100))
