"""What is true of a synthetic sky and of the detections that observe it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.errors import InputError, SurveyError
from scalable.schema import ROLES
from scalable.synthetic.sky import APERTURES, BANDS, DETECTIONS, GALAXY, STAR, Sky, SkySpec, detections, make_sky

SMALL = SkySpec(seed=7, fields=2, stars_per_field=400)
LARGE = SkySpec(seed=3, fields=1, stars_per_field=20_000)


@pytest.fixture(scope="module")
def small() -> Sky:
    return make_sky(SMALL)


@pytest.fixture(scope="module")
def large() -> Sky:
    return make_sky(LARGE)


def unit(ra: NDArray[Any], dec: NDArray[Any]) -> NDArray[Any]:
    """Return unit vectors, shape (n, 3), of angles in rad."""
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def separation_arcsec(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    chord = np.linalg.norm(left - right, axis=-1)
    return np.rad2deg(2 * np.arcsin(chord / 2)) * 3600


def star_vectors(sky: Sky) -> NDArray[Any]:
    return unit(*(np.deg2rad(sky.stars[name].to_numpy()) for name in ("ra_deg", "dec_deg")))


def offsets_arcsec(sky: Sky, observation_id: int) -> NDArray[Any]:
    table = detections(sky, observation_id)
    seen = unit(table["Ra"].to_numpy(), table["Dec"].to_numpy())
    return separation_arcsec(seen, star_vectors(sky)[table["StarID"].to_numpy()])


def epochs(sky: Sky, field: int, band: str) -> list[int]:
    """Return the observations of a field in a band in the order of time."""
    rows = [row for row in sky.observations.to_pylist() if row["FieldID"] == field and row["Filter"] == band]
    return [row["ID"] for row in sorted(rows, key=lambda row: row["MJD"])]


def light_curves(sky: Sky, ids: list[int], column: str) -> NDArray[Any]:
    """Return one column of several observations, shape (epochs, stars), NaN where a star is missing."""
    values = np.full((len(ids), len(sky.stars)), np.nan)
    for row, number in zip(values, ids, strict=True):
        table = detections(sky, number)
        row[table["StarID"].to_numpy()] = table[column].to_numpy()
    return values


def test_two_skies_from_one_spec_are_equal(small: Sky) -> None:
    again = make_sky(replace(SMALL))
    assert again.stars.equals(small.stars)
    assert again.observations.equals(small.observations)
    assert again.calibration.equals(small.calibration)


def test_another_seed_gives_another_sky(small: Sky) -> None:
    other = make_sky(replace(SMALL, seed=8))
    assert not np.array_equal(other.stars["ra_deg"], small.stars["ra_deg"])
    assert not np.array_equal(other.observations["MJD"], small.observations["MJD"])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(1, 21)))
def test_an_observation_does_not_depend_on_the_order_of_calls(order: list[int]) -> None:
    sky = make_sky(replace(SMALL, stars_per_field=30))
    expected = [detections(sky, number) for number in range(1, 21)]
    for number in order:
        got = detections(sky, number)
        # NaN equals NaN here: the bytes are compared.
        assert all(got[name].to_numpy().tobytes() == expected[number - 1][name].to_numpy().tobytes() for name in DETECTIONS.names)


def test_two_observations_of_one_field_have_noise_of_their_own(small: Sky) -> None:
    first, second = (offsets_arcsec(small, number)[:100] for number in (1, 2))
    assert not np.allclose(first, second)


def test_a_sky_with_more_fields_begins_with_the_smaller_sky(small: Sky) -> None:
    more = make_sky(replace(SMALL, fields=4))
    assert more.stars.slice(0, len(small.stars)).equals(small.stars)
    assert more.observations.slice(0, len(small.observations)).equals(small.observations)
    assert detections(more, 13)["Flux1"].equals(detections(small, 13)["Flux1"])


def test_stars_and_observations_have_the_asked_counts_and_unique_ids(small: Sky) -> None:
    assert small.stars["star_id"].to_pylist() == list(range(800))
    assert small.stars["field"].to_pylist() == [1] * 400 + [2] * 400
    assert small.observations["ID"].to_pylist() == list(range(1, 21))
    assert small.observations.column_names == ["ID", "FieldID", "Filename", "Filter", "MJD", "Airmass", "Exptime"]
    assert [len(epochs(small, field, band)) for field in (1, 2) for band in SMALL.bands] == [1, 1, 1, 1, 6] * 2


def test_a_detection_table_has_the_declared_columns_with_known_roles_and_units(small: Sky) -> None:
    table = detections(small, 1)
    assert table.schema.equals(DETECTIONS.to_arrow(), check_metadata=True)
    assert len(DETECTIONS) == 19
    assert {column.role for column in DETECTIONS} <= set(ROLES)
    assert {column.unit for column in DETECTIONS} == {"", "pix", "adu", "rad", "mag"}
    assert table["RunningID"].to_pylist() == list(range(1, len(table) + 1))
    assert len(set(table["StarID"].to_pylist())) == len(table)


def test_an_observation_sees_the_stars_of_its_field_with_their_class(small: Sky) -> None:
    table = detections(small, 12)
    ids = table["StarID"].to_numpy()
    assert ids.min() >= 400
    assert np.array_equal(table["Class"].to_numpy(), small.stars["class"].to_numpy()[ids])


def test_epochs_are_ranked_by_time_and_listed_in_another_order() -> None:
    for seed in range(20):
        sky = make_sky(SkySpec(seed=seed, fields=2, stars_per_field=1, epochs=2 + seed % 3, epoch_bands=("J", "Ks")))
        for field in (1, 2):
            for band in ("J", "Ks"):
                ids = epochs(sky, field, band)
                assert ids != sorted(ids)
                assert [sky.calibration["Epoch"][number - 1].as_py() for number in ids] == list(range(1, len(ids) + 1))


def test_the_missing_fraction_is_honoured(large: Sky) -> None:
    lengths = [len(detections(large, number)) for number in range(1, 11)]
    assert np.mean(lengths) / 20_000 == pytest.approx(0.95, abs=0.002)
    assert len(set(lengths)) > 1


def test_the_null_fraction_is_honoured_in_each_aperture_with_its_error(large: Sky) -> None:
    table = detections(large, 1)
    for n in (1, 2, 3):
        null = np.isnan(table[f"Mag{n}"].to_numpy())
        assert null.mean() == pytest.approx(0.002, abs=0.001)
        assert np.array_equal(null, np.isnan(table[f"dMag{n}"].to_numpy()))
        assert np.isfinite(table[f"Flux{n}"].to_numpy()).all()


def test_nothing_is_missing_or_null_when_nothing_was_asked_to_be() -> None:
    sky = make_sky(replace(SMALL, missing_fraction=0.0, null_fraction=0.0))
    for number in range(1, 21):
        table = detections(sky, number)
        assert len(table) == 400
        positive = table["Flux1"].to_numpy() > 0
        assert np.array_equal(np.isfinite(table["Mag1"].to_numpy()), positive)
        assert positive.mean() > 0.99


def test_everything_missing_leaves_an_empty_table_with_all_columns() -> None:
    table = detections(make_sky(replace(SMALL, missing_fraction=1.0)), 1)
    assert len(table) == 0
    assert table.column_names == DETECTIONS.names


def test_raw_fluxes_of_two_epochs_differ_by_the_declared_ratio_and_magnitudes_agree(large: Sky) -> None:
    ids = epochs(large, 1, "Ks")
    constant = ~large.stars["variable"].to_numpy()
    flux, magnitude = (light_curves(large, ids, name)[:, constant] for name in ("Flux1", "Mag1"))
    zero_point = np.array([large.calibration["ZeroPoint"][number - 1].as_py() for number in ids])
    bright = light_curves(large, ids, "dMag1")[:, constant].max(axis=0) < 0.05
    for epoch in range(1, len(ids)):
        declared = 10 ** (0.4 * (zero_point[epoch] - zero_point[0]))
        assert np.nanmedian(flux[epoch] / flux[0]) == pytest.approx(declared, rel=0.01)
        assert abs(declared - 1) > 0.1
        assert abs(np.nanmedian((magnitude[epoch] - magnitude[0])[bright])) < 0.005


def test_magnitudes_agree_with_the_truth_within_their_errors(large: Sky) -> None:
    star = (large.stars["class"].to_numpy() == STAR) & ~large.stars["variable"].to_numpy()
    for number, band in enumerate(LARGE.bands, start=1):
        for n in (1, 2, 3):
            [measured], [error] = (light_curves(large, [number], name) for name in (f"Mag{n}", f"dMag{n}"))
            truth = large.stars[f"mag_{band}"].to_numpy()
            # Chosen by the truth: a cut in the measured error would favour those that noise made bright.
            pull = ((measured - truth) / error)[star & (truth < BANDS[band].depth_mag - 2.5) & np.isfinite(measured)]
            assert len(pull) > 1000
            assert np.mean(pull) == pytest.approx(0, abs=0.08)
            assert np.std(pull) == pytest.approx(1, abs=0.05)


def test_the_zero_point_leaves_signal_to_noise_as_it_was(large: Sky) -> None:
    bright = (large.stars["mag_Ks"].to_numpy() < 14) & ~large.stars["variable"].to_numpy()
    error = light_curves(large, epochs(large, 1, "Ks"), "dMag1")[:, bright]
    assert np.nanmedian(error / np.nanmean(error, axis=0), axis=1) == pytest.approx(1, abs=0.01)


def test_the_noise_of_a_wider_aperture_contains_that_of_the_narrower(large: Sky) -> None:
    table = detections(large, 1)
    star = table["Class"].to_numpy() == STAR
    magnitude = large.stars["mag_Z"].to_numpy()[table["StarID"].to_numpy()]
    true = 10 ** (-0.4 * (magnitude - large.calibration["ZeroPoint"][0].as_py()))
    flux, error = ([table[f"{name}{n}"].to_numpy().astype(float) for n in (1, 2, 3)] for name in ("Flux", "dFlux"))
    for inner, outer in ((0, 1), (0, 2), (1, 2)):
        light = true * (APERTURES[outer].star_light - APERTURES[inner].star_light)
        ring = (flux[outer] - flux[inner] - light) / np.sqrt(error[outer] ** 2 - error[inner] ** 2)
        # Percentiles: the variables among the stars are not at their mean magnitude and would spoil a standard deviation.
        low, high = np.percentile(ring[star], [15.87, 84.13])
        assert (high - low) / 2 == pytest.approx(1, abs=0.05)


def test_wider_apertures_hold_more_light_of_galaxies_more_than_of_stars(large: Sky) -> None:
    table = detections(large, 4)
    galaxy = table["Class"].to_numpy() == GALAXY
    flux = [table[f"Flux{n}"].to_numpy() for n in (1, 2, 3)]
    for inner, outer in ((0, 1), (1, 2)):
        ratio = flux[outer] / flux[inner]
        assert np.median(ratio[galaxy]) > np.median(ratio[~galaxy]) > 1.05


def test_faint_sources_have_low_and_bright_sources_high_signal_to_noise(large: Sky) -> None:
    table = detections(large, 1)
    low, high = np.percentile(table["Flux1"].to_numpy() / table["dFlux1"].to_numpy(), [1, 99])
    assert 3 < low < 7
    assert high > 300


@pytest.mark.parametrize("jitter", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("centre", [(269.5, -30.0), (0.0, 0.0), (359.9, 45.0), (10.0, 90.0), (200.0, -90.0)])
def test_positions_scatter_by_the_jitter_everywhere_on_the_sky(centre: tuple[float, float], jitter: float) -> None:
    sky = make_sky(replace(SMALL, stars_per_field=3000, centre=centre, jitter_arcsec=jitter))
    offsets = offsets_arcsec(sky, 1)
    # Two axes of the same standard deviation.
    assert np.sqrt(np.mean(offsets**2)) == pytest.approx(jitter * np.sqrt(2), rel=0.05, abs=1e-8)
    assert offsets.max(initial=0) <= 6 * jitter + 1e-8


@pytest.mark.parametrize("centre", [(269.5, -30.0), (0.0, 0.0), (-0.05, 60.0), (10.0, 90.0), (200.0, -89.9)])
def test_angles_stay_in_range_and_stars_within_their_field(centre: tuple[float, float]) -> None:
    sky = make_sky(replace(SMALL, centre=centre))
    ra, dec = (sky.stars[name].to_numpy() for name in ("ra_deg", "dec_deg"))
    assert ra.min() >= 0
    assert ra.max() < 360
    middle = unit(*np.deg2rad(np.array(centre)))
    away = separation_arcsec(star_vectors(sky)[:400], middle) / 3600
    assert 0.28 < away.max() <= 0.3 + 1e-9
    # Uniform in area: half of the stars lie within 1/sqrt(2) of the radius.
    assert np.mean(away < 0.3 / np.sqrt(2)) == pytest.approx(0.5, abs=0.08)
    assert np.abs(dec).max() <= 90
    seen = detections(sky, 1)["Ra"].to_numpy()
    assert seen.min() >= 0
    assert seen.max() < 2 * np.pi


def test_a_star_a_hair_west_of_ra_0_is_not_at_a_full_turn() -> None:
    # The modulo of -1e-20 is a full turn: the field is that small on purpose.
    sky = make_sky(replace(SMALL, centre=(0.0, 0.0), fields=1, field_radius_deg=1e-17, jitter_arcsec=1e-15))
    assert sky.stars["ra_deg"].to_numpy().max() < 360
    assert detections(sky, 1)["Ra"].to_numpy().max() < 2 * np.pi


def test_a_field_across_ra_0_has_stars_on_both_sides() -> None:
    ra = make_sky(replace(SMALL, centre=(0.0, 0.0), fields=1)).stars["ra_deg"].to_numpy()
    assert np.all((ra < 0.31) | (ra > 359.69))
    assert 100 < np.sum(ra < 180) < 300


def test_a_field_on_the_pole_has_stars_at_every_right_ascension() -> None:
    sky = make_sky(replace(SMALL, centre=(0.0, 90.0), fields=1))
    counts, _ = np.histogram(sky.stars["ra_deg"].to_numpy(), bins=4, range=(0, 360))
    assert counts.min() > 60


@settings(max_examples=20, deadline=None)
@given(fields=st.integers(2, 40), dec=st.floats(-90, 90), radius=st.floats(0.01, 3))
def test_fields_are_neighbours_and_do_not_overlap(fields: int, dec: float, radius: float) -> None:
    spec = SkySpec(fields=fields, stars_per_field=200, epochs=1, centre=(0.0, dec), field_radius_deg=radius, bands=("Ks",))
    # The mean of 200 stars is within about a tenth of a radius of the centre.
    centres = star_vectors(make_sky(spec)).reshape(fields, 200, 3).mean(axis=1)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    distance = np.rad2deg(np.arccos(np.clip(centres @ centres.T, -1, 1))) + np.eye(fields) * 999
    assert distance.min() > 1.7 * radius
    assert distance.min(axis=1).max() < 5 * radius


def test_variable_stars_vary_as_declared_and_constant_ones_do_not() -> None:
    sky = make_sky(SkySpec(seed=2, fields=1, stars_per_field=2000, epochs=30, variable_fraction=0.2, bands=("Ks",)))
    ids = epochs(sky, 1, "Ks")
    magnitude, error = (light_curves(sky, ids, name) for name in ("Mag1", "dMag1"))
    good = np.nanmedian(error, axis=0) < 0.05
    variable = sky.stars["variable"].to_numpy()
    scatter = np.nanstd(magnitude, axis=0)
    assert scatter[good & variable].min() > 0.05
    assert np.percentile(scatter[good & ~variable], 99) < 0.06
    assert np.median(scatter[good & variable]) > 8 * np.median(scatter[good & ~variable])

    time = np.array([sky.observations["MJD"][number - 1].as_py() for number in ids])[:, None]
    period, phase, amplitude, mean = (sky.stars[name].to_numpy() for name in ("period_d", "phase", "amplitude_mag", "mag_Ks"))
    model = mean + amplitude * np.sin(2 * np.pi * (time / period + phase))
    pull = ((magnitude - model) / error)[:, good & variable & (sky.stars["class"].to_numpy() == STAR)]
    assert np.nanstd(pull) == pytest.approx(1, abs=0.1)


def test_the_truth_of_variables_is_in_range_and_null_for_constant_sources(large: Sky) -> None:
    variable, galaxy = large.stars["variable"].to_numpy(), large.stars["class"].to_numpy() == GALAXY
    period, amplitude = (large.stars[name].to_numpy() for name in ("period_d", "amplitude_mag"))
    assert variable[~galaxy].mean() == pytest.approx(0.05, abs=0.005)
    assert not variable[galaxy].any()
    assert np.all((period[variable] >= 0.3) & (period[variable] <= 3))
    assert np.all((amplitude[variable] >= 0.1) & (amplitude[variable] <= 0.6))
    assert large.stars["period_d"].null_count == large.stars["phase"].null_count == np.sum(~variable)
    assert np.all(amplitude[~variable] == 0)


def test_colours_show_a_stellar_locus_with_a_red_tail_and_galaxies_off_it(large: Sky) -> None:
    galaxy = large.stars["class"].to_numpy() == GALAXY
    assert galaxy.mean() == pytest.approx(0.1, abs=0.01)
    magnitude = {band: large.stars[f"mag_{band}"].to_numpy() for band in LARGE.bands}
    j_h, h_k = magnitude["J"] - magnitude["H"], magnitude["H"] - magnitude["Ks"]
    assert 0.4 < np.median(j_h[~galaxy]) < 0.9
    assert 0.005 < np.mean(j_h[~galaxy] > 1.5) < 0.05
    assert np.corrcoef(j_h[~galaxy], h_k[~galaxy])[0, 1] > 0.9
    # At the J-H of a galaxy a star is bluer in H-Ks.
    slope, start = np.polyfit(j_h[~galaxy], h_k[~galaxy], 1)
    excess = h_k - (slope * j_h + start)
    assert np.median(excess[galaxy]) > 3 * np.std(excess[~galaxy])


@pytest.mark.parametrize("bands", [("u", "g", "r", "i", "z", "y"), ("J",), ("g", "Ks")])
def test_other_sets_of_bands_work(bands: tuple[str, ...]) -> None:
    sky = make_sky(SkySpec(fields=1, stars_per_field=500, bands=bands, epoch_bands=(bands[-1],), epochs=2))
    for number in range(1, len(bands) + 2):
        table = detections(sky, number)
        snr = table["Flux1"].to_numpy() / table["dFlux1"].to_numpy()
        assert np.median(snr) > 5
        assert snr.max() > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "SkySpec.seed is -1; it must be at least 0"),
        ({"fields": 0}, "fields is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"missing_fraction": 1.5}, "missing_fraction is 1.5; it must be between 0 and 1"),
        ({"jitter_arcsec": float("nan")}, "jitter_arcsec is nan"),
        ({"centre": (0.0, 91.0)}, "centre is"),
        ({"centre": (float("inf"), 0.0)}, "centre is"),
        ({"fields": 2000, "field_radius_deg": 5.0}, "2000 fields of radius 5.0 deg do not fit on the sky"),
        ({"bands": ()}, "bands is empty"),
        ({"bands": ("Z", "K"), "epoch_bands": ()}, "bands holds 'K'; did you mean"),
        ({"bands": ("z", "Z"), "epoch_bands": ()}, "more than upper and lower case"),
        ({"bands": ("J", "H")}, "epoch_bands holds 'Ks', which is not in SkySpec.bands; choices: J, H"),
    ],
)
def test_a_spec_that_is_no_sky_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SurveyError, match=message):
        SkySpec(**changes)


@pytest.mark.parametrize("number", [0, -1, 21])
def test_an_observation_that_is_not_there_is_refused(small: Sky, number: int) -> None:
    with pytest.raises(InputError, match=f"no observation {number} in this sky; its observations are 1 to 20"):
        detections(small, number)
