"""The truth: fields of stars and galaxies from a seed, and what each observation of them measured.

Every draw comes from a generator seeded with (seed, purpose, number), where the number is a field or an observation. So a field
does not change when more fields are asked for, and an observation does not change with the order in which observations are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.errors import InputError, SurveyError, nearest
from scalable.schema import Column, Schema

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Band(NamedTuple):
    """A filter: what its colours, its depth and its images need."""

    wavelength_um: float
    depth_mag: float
    """Magnitude of a source with S/N about 5 in aperture 1."""
    exposure_s: float


BANDS = {
    "u": Band(0.36, 23.5, 30.0),
    "g": Band(0.48, 24.0, 30.0),
    "r": Band(0.62, 23.8, 30.0),
    "i": Band(0.75, 23.4, 30.0),
    "z": Band(0.87, 22.7, 30.0),
    "y": Band(0.97, 21.9, 30.0),
    "Z": Band(0.88, 20.5, 40.0),
    "Y": Band(1.02, 20.0, 40.0),
    "J": Band(1.25, 19.5, 48.0),
    "H": Band(1.65, 18.6, 16.0),
    "Ks": Band(2.15, 18.0, 16.0),
}


class Aperture(NamedTuple):
    """Light in an aperture relative to aperture 1, and the background's noise in it at the nominal zero point."""

    star_light: float
    galaxy_light: float
    noise_adu: float


APERTURES = (Aperture(1.0, 1.0, 70.0), Aperture(1.15, 1.35, 100.0), Aperture(1.25, 1.6, 140.0))

STAR, GALAXY = -1, 1
GALAXY_FRACTION = 0.1
ZERO_POINT_SPREAD_MAG = 0.8  # between the extreme epochs of a field and band, so neighbours in rank differ by a few 0.1 mag
BRIGHTEST_MAG = 11.5  # at REFERENCE_UM
COUNTS_SLOPE = 0.3  # number of sources ~ 10**(slope * magnitude)
PIXEL_ARCSEC = 0.339  # VISTA's
GAIN = 4.0  # electrons per adu at the nominal zero point
VEGA_K = 9600.0
REFERENCE_UM = 2.15
FIRST_MJD = 56560.0


class _Stream(IntEnum):
    """What a generator is for: draws for one purpose never shift those for another."""

    FIELD = 1
    SCHEDULE = 2
    OBSERVATION = 3


def _detection_columns() -> tuple[Column, ...]:
    """Return the 19 columns of a detection table, in the order of the real VVV tables."""
    e, d = pa.float32(), pa.float64()
    fluxes, magnitudes = [], []
    for n in range(1, len(APERTURES) + 1):
        fluxes += [
            Column(f"Flux{n}", e, "flux", "adu", error=f"dFlux{n}", description=f"Flux in aperture {n}"),
            Column(f"dFlux{n}", e, "flux_err", "adu", description=f"Error of Flux{n}"),
        ]
        magnitudes += [
            Column(f"Mag{n}", e, "mag", "mag", error=f"dMag{n}", description=f"Magnitude in aperture {n} (Vega)"),
            Column(f"dMag{n}", e, "mag_err", "mag", description=f"Error of Mag{n}"),
        ]
    return (
        Column("RunningID", e, "value", description="Running number in the image"),
        Column("X", e, "value", "pix", description="Pixel column"),
        Column("Y", e, "value", "pix", description="Pixel row"),
        *fluxes,
        Column("Ra", d, "ra", "rad", description="Right ascension (ICRS)"),
        Column("Dec", d, "dec", "rad", description="Declination (ICRS)"),
        Column("Class", e, "class", description=f"{STAR} star, {GALAXY} galaxy"),
        *magnitudes,
        Column("StarID", pa.int64(), "object_id", description="Star number"),
    )


DETECTIONS = Schema(_detection_columns())


@dataclass(frozen=True, kw_only=True)
class SkySpec:
    """What a synthetic sky holds; equal specifications give equal skies, to the bit.

    Attributes
    ----------
    seed : int
        Source of everything random; not negative.
    fields : int
        Number of circular fields, numbered from 1. They are neighbours, in a spiral about field 1, and do not overlap.
    stars_per_field : int
        Sources in each field, galaxies (a tenth) among them.
    bands : tuple of str
        Names out of `BANDS`.
    epochs : int
        Observations of each field in each of ``epoch_bands``; the other bands have one.
    epoch_bands : tuple of str
        Bands that are observed again and again.
    variable_fraction : float
        Probability that a star (not a galaxy) varies.
    missing_fraction : float
        Probability that a source is missing from an observation.
    null_fraction : float
        Probability that one magnitude (with its error) of a detection is NaN; independent for each aperture.
    jitter_arcsec : float
        Standard deviation of a detection's position, on each of the two axes.
    centre : tuple of float
        Right ascension and declination of the centre of field 1 (deg).
    field_radius_deg : float
        Radius of a field.
    """

    seed: int = 1
    fields: int = 3
    stars_per_field: int = 2000
    bands: tuple[str, ...] = ("Z", "Y", "J", "H", "Ks")
    epochs: int = 6
    epoch_bands: tuple[str, ...] = ("Ks",)
    variable_fraction: float = 0.05
    missing_fraction: float = 0.05
    null_fraction: float = 0.002
    jitter_arcsec: float = 0.1
    centre: tuple[float, float] = (269.5, -30.0)
    field_radius_deg: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot be a sky."""
        _check_numbers(self)
        _check_bands(self)

    def epochs_in(self, band: str) -> int:
        """Return the number of observations of each field in ``band``."""
        return self.epochs if band in self.epoch_bands else 1


def _check_numbers(spec: SkySpec) -> None:
    for name, least in (("seed", 0), ("fields", 1), ("stars_per_field", 0), ("epochs", 1)):
        if getattr(spec, name) < least:
            raise SurveyError(f"SkySpec.{name} is {getattr(spec, name)}; it must be at least {least}")
    for name, most in (
        ("variable_fraction", 1.0),
        ("missing_fraction", 1.0),
        ("null_fraction", 1.0),
        ("jitter_arcsec", 60.0),
        ("field_radius_deg", 90.0),
    ):
        if not 0 <= getattr(spec, name) <= most:
            raise SurveyError(f"SkySpec.{name} is {getattr(spec, name)}; it must be between 0 and {most:g}")
    ra, dec = spec.centre
    if not (math.isfinite(ra) and -90 <= dec <= 90):
        raise SurveyError(f"SkySpec.centre is {spec.centre}; it must be a right ascension and a declination in deg")
    if _spiral_chord(spec, spec.fields) > 2:
        raise SurveyError(
            f"{spec.fields} fields of radius {spec.field_radius_deg} deg do not fit on the sky; "
            "take a smaller SkySpec.fields or SkySpec.field_radius_deg"
        )


def _check_bands(spec: SkySpec) -> None:
    if not spec.bands:
        raise SurveyError(f"SkySpec.bands is empty; {nearest('', BANDS)}")
    for band in spec.bands:
        if band not in BANDS:
            raise SurveyError(f"SkySpec.bands holds {band!r}; {nearest(band, BANDS)}")
    # Many file systems and SQL engines cannot tell "z" from "Z".
    if len({band.lower() for band in spec.bands}) < len(spec.bands):
        raise SurveyError(f"SkySpec.bands is {spec.bands}; bands must differ in more than upper and lower case")
    for band in spec.epoch_bands:
        if band not in spec.bands:
            raise SurveyError(f"SkySpec.epoch_bands holds {band!r}, which is not in SkySpec.bands; {nearest(band, spec.bands)}")


@dataclass(frozen=True)
class Sky:
    """A sky and its truth.

    Attributes
    ----------
    spec : SkySpec
        What was asked for.
    stars : pyarrow.Table
        One row a source, by field and ``star_id``: ``star_id`` (int64, unique over the fields), ``field``, ``ra_deg`` in
        [0, 360), ``dec_deg``, ``class`` (-1 star, 1 galaxy), ``variable``, ``period_d``, ``amplitude_mag`` (half of peak to peak;
        0 for a constant source), ``phase`` in [0, 1), and for each band ``mag_{band}``, the mean magnitude. ``period_d`` and
        ``phase`` are null for a constant source. At a time t (MJD) the magnitude is
        ``mag + amplitude_mag * sin(2 pi (t / period_d + phase))``.
    observations : pyarrow.Table
        One row an observation, with the columns of the real index: ``ID`` (1, 2, …), ``FieldID``, ``Filename`` (an archive's
        name, not the name on disk), ``Filter``, ``MJD`` (d), ``Airmass``, ``Exptime`` (s). Epochs are not in order of ``MJD``.
    calibration : pyarrow.Table
        Truth of the observations, in the same order: ``ID``, ``Epoch`` (rank in MJD within field and band, from 1), ``ZeroPoint``
        (mag; a flux of 1 adu in aperture 1).
    """

    spec: SkySpec
    stars: pa.Table = field(repr=False)
    observations: pa.Table = field(repr=False)
    calibration: pa.Table = field(repr=False)


def make_sky(spec: SkySpec) -> Sky:
    """Draw the sources and the schedule of a sky.

    Field ``n`` depends on the seed, the radius, the centre, the bands and the number of stars, not on how many fields there are.
    """
    stars = pa.concat_tables([_field_stars(spec, number) for number in range(1, spec.fields + 1)]).combine_chunks()
    observations, calibration = _observe(spec)
    return Sky(spec, stars, observations, calibration)


def detections(sky: Sky, observation_id: int) -> pa.Table:
    """Measure one observation.

    Parameters
    ----------
    sky : Sky
        The sky that is observed.
    observation_id : int
        ``ID`` of a row of ``sky.observations``.

    Returns
    -------
    pyarrow.Table
        The columns of `DETECTIONS`, one row a detection, by pixel row ``Y`` (so not by ``StarID``). Depends on the sky and
        ``observation_id`` alone.

        ``Flux{n}`` follows the observation's zero point, ``Mag{n}`` is calibrated: for stars all apertures and all epochs agree.
        Errors are those of the noise that was drawn (photons and background; noise of a wider aperture contains that of the
        narrower ones). A magnitude is NaN where it was drawn to be and where the flux is not positive.

    Raises
    ------
    InputError
        If there is no such observation.
    """
    row = _row_of(sky, observation_id)
    rng = _generator(sky.spec, _Stream.OBSERVATION, observation_id)
    number = int(sky.observations["FieldID"][row].as_py())
    stars = sky.stars.slice((number - 1) * sky.spec.stars_per_field, sky.spec.stars_per_field)

    seen = np.flatnonzero(rng.random(len(stars)) >= sky.spec.missing_fraction)
    vectors = _jittered(rng, stars, seen, sky.spec.jitter_arcsec)
    x, y = _pixels(rng, vectors, _frame(*_field_centre(sky.spec, number)))
    order = np.argsort(y, kind="stable")
    ra, dec = _angles(vectors[:, order])

    chosen = seen[order]
    columns = {
        "RunningID": np.arange(1, len(chosen) + 1),
        "X": x[order],
        "Y": y[order],
        "Ra": _wrapped(ra, 2 * np.pi),
        "Dec": dec,
        "Class": _values(stars, "class")[chosen],
        "StarID": _values(stars, "star_id")[chosen],
        **_photometry(sky, row, stars, chosen, rng),
    }
    arrays = [pa.array(columns[column.name].astype(column.dtype.to_pandas_dtype(), copy=False)) for column in DETECTIONS]
    return pa.Table.from_arrays(arrays, schema=DETECTIONS.to_arrow())


def _generator(spec: SkySpec, stream: _Stream, number: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, int(stream), number])


def _values(table: pa.Table, name: str) -> NDArray[np.generic]:
    """Return a column as an array; nulls of a float column become NaN."""
    values: NDArray[np.generic] = table[name].to_numpy()
    return values


def _row_of(sky: Sky, observation_id: int) -> int:
    """Return the row of an observation; its number is its row plus one."""
    if not 1 <= observation_id <= len(sky.observations):
        raise InputError(f"no observation {observation_id} in this sky; its observations are 1 to {len(sky.observations)}")
    return observation_id - 1


# Directions. Everything is done on unit vectors, shape (3, n), so that the poles and RA 0 are places like any other.


def _angles(vectors: Floats) -> tuple[Floats, Floats]:
    """Return right ascension (not wrapped) and declination (rad) of vectors of any length, shape (3, n)."""
    x, y, z = vectors
    return np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))


def _wrapped(angle: Floats, turn: float) -> Floats:
    """Return ``angle`` in [0, turn); the modulo of a tiny negative number rounds to ``turn`` itself."""
    inside = np.mod(angle, turn)
    return np.where(inside >= turn, 0.0, inside)


def _frame(ra_deg: float, dec_deg: float) -> Floats:
    """Return east, north and outward unit vectors at a point as rows, shape (3, 3)."""
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    return np.array(
        [
            [-math.sin(ra), math.cos(ra), 0.0],
            [-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec)],
            [math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)],
        ]
    )


def _around(frame: Floats, chord: Floats, angle: Floats) -> Floats:
    """Return unit vectors at a straight-line distance ``chord`` from the centre of ``frame``, at a position angle (rad)."""
    height = 1 - chord**2 / 2
    reach = chord * np.sqrt(np.maximum(1 - chord**2 / 4, 0.0))
    local = np.stack([reach * np.sin(angle), reach * np.cos(angle), height])
    return frame.T @ local


def _spiral_chord(spec: SkySpec, number: int) -> float:
    """Return the straight-line distance of a field's centre from that of field 1: it grows as the root of the number.

    Area goes with the square of the chord, so the fields lie equally dense; 2 sin(radius) makes field 2 touch field 1.
    """
    return 2 * math.sin(math.radians(spec.field_radius_deg)) * math.sqrt(number - 1)


def _field_centre(spec: SkySpec, number: int) -> tuple[float, float]:
    """Return right ascension and declination (deg) of a field, on a golden-angle spiral about field 1."""
    golden = math.pi * (3 - math.sqrt(5))
    chord, angle = np.array([_spiral_chord(spec, number)]), np.array([number * golden])
    ra, dec = _angles(_around(_frame(*spec.centre), chord, angle))
    return math.degrees(ra[0]), math.degrees(dec[0])


def _jittered(rng: np.random.Generator, stars: pa.Table, chosen: NDArray[np.intp], jitter_arcsec: float) -> Floats:
    """Return directions of the chosen stars, shape (3, n), each moved in its own tangent plane."""
    ra, dec = (np.deg2rad(_values(stars, name)[chosen].astype(np.float64)) for name in ("ra_deg", "dec_deg"))
    east, north = rng.normal(scale=math.radians(jitter_arcsec / 3600), size=(2, len(chosen)))
    sin_ra, cos_ra, sin_dec, cos_dec = np.sin(ra), np.cos(ra), np.sin(dec), np.cos(dec)
    radial = cos_dec - sin_dec * north
    return np.stack([radial * cos_ra - east * sin_ra, radial * sin_ra + east * cos_ra, sin_dec + cos_dec * north])


def _pixels(rng: np.random.Generator, vectors: Floats, frame: Floats) -> tuple[Floats, Floats]:
    """Return pixel coordinates in an image about the field, orthographic, with a small pointing error of the observation."""
    scale = 180 * 3600 / math.pi / PIXEL_ARCSEC
    dither = rng.uniform(-20, 20, size=2)
    x, y = (frame[:2] @ vectors) * scale + dither[:, None]
    return x, y


# Sources.


def _field_stars(spec: SkySpec, number: int) -> pa.Table:
    """Return the sources of one field."""
    rng, n = _generator(spec, _Stream.FIELD, number), spec.stars_per_field
    # Equal area: the squared chord of a uniform point in a cap is uniform.
    chord = 2 * math.sin(math.radians(spec.field_radius_deg) / 2) * np.sqrt(rng.random(n))
    ra, dec = _angles(_around(_frame(*_field_centre(spec, number)), chord, rng.uniform(0, 2 * np.pi, n)))
    galaxy = rng.random(n) < GALAXY_FRACTION
    variable = ~galaxy & (rng.random(n) < spec.variable_fraction)
    period = 0.3 * 10 ** rng.random(n)
    amplitude = np.where(variable, rng.uniform(0.1, 0.6, n), 0.0)
    phase = rng.random(n)
    magnitudes = _magnitudes(rng, spec.bands, galaxy, amplitude)
    return pa.table(
        {
            "star_id": np.arange((number - 1) * n, number * n, dtype=np.int64),
            "field": np.full(n, number, dtype=np.int64),
            "ra_deg": _wrapped(np.rad2deg(ra), 360.0),
            "dec_deg": np.rad2deg(dec),
            "class": np.where(galaxy, GALAXY, STAR).astype(np.int64),
            "variable": pa.array(variable),
            "period_d": pa.array(period, mask=~variable),
            "amplitude_mag": amplitude,
            "phase": pa.array(phase, mask=~variable),
            **{f"mag_{band}": row for band, row in zip(spec.bands, magnitudes, strict=True)},
        }
    )


def _magnitudes(rng: np.random.Generator, bands: Sequence[str], galaxy: Bools, amplitude: Floats) -> Floats:
    """Return mean magnitudes, shape (bands, n), of sources that all bands reach at minimum light.

    As in the real tables, where each source has a row in every band; so a flux that is not positive is a matter of 5 sigma.
    """
    wavelength = np.array([BANDS[band].wavelength_um for band in bands])
    depth = np.array([BANDS[band].depth_mag for band in bands])
    colour = _colours(rng, wavelength, galaxy)
    faintest = (depth[:, None] - colour).min(axis=0) - amplitude
    span = np.maximum(faintest - BRIGHTEST_MAG, 0.1)
    above = np.log10(1 + rng.random(len(galaxy)) * (10 ** (COUNTS_SLOPE * span) - 1)) / COUNTS_SLOPE
    return BRIGHTEST_MAG + above + colour


def _colours(rng: np.random.Generator, wavelength_um: Floats, galaxy: Bools) -> Floats:
    """Return magnitudes relative to `REFERENCE_UM`, shape (bands, n): a stellar locus with a red tail, and galaxies off it.

    Stars are black bodies, giants of the red clump and dwarfs, behind patchy dust. Galaxies are power laws, so their H-Ks is red
    for their J-H.
    """
    n = len(galaxy)
    giant = rng.random(n) < 0.6
    temperature = np.where(giant, rng.normal(4600, 200, n), rng.uniform(3200, 7500, n))
    law = (wavelength_um / REFERENCE_UM) ** -1.6
    # Dust costs the bluest band at most 7.5 mag more than the reference, or no source behind it would reach every band.
    most = min(2.3, 7.5 / max(law.max() - 1, 1e-3))
    dust = most * rng.beta(1.4, 4.2, n)
    scatter = rng.normal(scale=0.03, size=(len(wavelength_um), n))
    slope = rng.normal(2.7, 0.3, n)
    stars = _black_body(wavelength_um, temperature) + np.outer(law - 1, dust)
    galaxies = np.outer(-2.5 * np.log10(wavelength_um / REFERENCE_UM), slope) + np.outer(law - 1, dust / 4)
    return np.where(galaxy, galaxies, stars) + scatter


def _black_body(wavelength_um: Floats, temperature_k: Floats) -> Floats:
    """Return a black body's Vega magnitudes relative to `REFERENCE_UM`, shape (bands, n)."""
    c2 = 14387.77  # h c / k in um K

    def dimming(wavelength: Floats) -> Floats:
        return 2.5 * np.log10(np.expm1(c2 / np.outer(wavelength, temperature_k)) / np.expm1(c2 / wavelength / VEGA_K)[:, None])

    return dimming(wavelength_um) - dimming(np.array([REFERENCE_UM]))


# Observations.


def _observe(spec: SkySpec) -> tuple[pa.Table, pa.Table]:
    """Return the index of the observations and their calibration, field by field, band by band."""
    parts = [_field_schedule(spec, number) for number in range(1, spec.fields + 1)]
    table = pa.concat_tables(parts).combine_chunks()
    identity = np.arange(1, len(table) + 1, dtype=np.int64)
    table = table.append_column("ID", pa.array(identity))
    names = [
        f"{band}-SYN.{spec.seed:04d}.{number:06d}.fits"
        for band, number in zip(table["Filter"].to_pylist(), identity, strict=True)
    ]
    table = table.append_column("Filename", pa.array(names, pa.string()))
    return (
        table.select(["ID", "FieldID", "Filename", "Filter", "MJD", "Airmass", "Exptime"]),
        table.select(["ID", "Epoch", "ZeroPoint"]),
    )


def _field_schedule(spec: SkySpec, number: int) -> pa.Table:
    """Return the observations of one field."""
    rng = _generator(spec, _Stream.SCHEDULE, number)
    return pa.concat_tables([_band_schedule(rng, band, spec.epochs_in(band), number) for band in spec.bands])


def _band_schedule(rng: np.random.Generator, band: str, epochs: int, number: int) -> pa.Table:
    """Return the observations of one field in one band, out of the order of time if there are several."""
    # Visits days to weeks apart and at any hour of the night: no period between 0.3 and 3 d is in step with them.
    mjd = FIRST_MJD + number + np.cumsum(rng.uniform(2, 30, epochs))
    offset = rng.permutation(np.linspace(-0.5, 0.5, epochs)) * ZERO_POINT_SPREAD_MAG
    order = _disorder(rng, epochs)
    table = pa.table(
        {
            "FieldID": np.full(epochs, number, dtype=np.int64),
            "Filter": pa.array([band] * epochs, pa.string()),
            "MJD": np.round(mjd, 7),
            "Airmass": np.round(rng.uniform(1.0, 1.65, epochs), 4),
            "Exptime": np.full(epochs, BANDS[band].exposure_s),
            "Epoch": np.arange(1, epochs + 1, dtype=np.int64),
            "ZeroPoint": np.round(_nominal_zero_point(band) + offset, 6),
        }
    )
    return table.take(pa.array(order))


def _disorder(rng: np.random.Generator, n: int) -> NDArray[np.intp]:
    """Return a permutation which is not the identity, where there is one."""
    order = rng.permutation(n)
    return order[::-1] if all(left < right for left, right in pairwise(order)) else order


def _nominal_zero_point(band: str) -> float:
    """Return the magnitude of 1 adu (mag) at which a source of the band's depth is 5 times the noise of the background."""
    return BANDS[band].depth_mag + 2.5 * math.log10(5 * APERTURES[0].noise_adu)


def _photometry(
    sky: Sky, row: int, stars: pa.Table, chosen: NDArray[np.intp], rng: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    """Return fluxes (adu) and magnitudes with their errors in every aperture, each of shape (n,)."""
    band, mjd = (sky.observations[name][row].as_py() for name in ("Filter", "MJD"))
    zero_point = sky.calibration["ZeroPoint"][row].as_py()
    galaxy = _values(stars, "class")[chosen] == GALAXY
    flux = 10 ** (-0.4 * (_magnitudes_at(stars, band, mjd)[chosen] - zero_point))
    # A zero point offset acts as a gain: it scales flux and noise alike, and leaves S/N and calibrated magnitudes as they were.
    scale = 10 ** (0.4 * (zero_point - _nominal_zero_point(band)))
    columns: dict[str, NDArray[np.generic]] = {}
    noise, variance = np.zeros(len(chosen)), np.zeros(len(chosen))
    for n, aperture in enumerate(APERTURES, start=1):
        light = flux * np.where(galaxy, aperture.galaxy_light, aperture.star_light)
        wider = scale * light / GAIN + (scale * aperture.noise_adu) ** 2
        noise = noise + np.sqrt(wider - variance) * rng.standard_normal(len(chosen))
        variance = wider
        measured, error = light + noise, np.sqrt(variance)
        null = rng.random(len(chosen)) < sky.spec.null_fraction
        usable = np.where(null | (measured <= 0), np.nan, measured)
        columns |= {
            f"Flux{n}": measured,
            f"dFlux{n}": error,
            f"Mag{n}": zero_point - 2.5 * np.log10(usable / aperture.star_light),
            f"dMag{n}": 2.5 / math.log(10) * error / usable,
        }
    return columns


def _magnitudes_at(stars: pa.Table, band: str, mjd: float) -> Floats:
    """Return the true magnitudes of a field's sources at a time (MJD), shape (n,)."""
    mean = _values(stars, f"mag_{band}").astype(np.float64)
    varying = np.flatnonzero(stars["variable"].to_numpy())
    period, phase, amplitude = (
        _values(stars, name)[varying].astype(np.float64) for name in ("period_d", "phase", "amplitude_mag")
    )
    mean[varying] += amplitude * np.sin(2 * np.pi * (mjd / period + phase))
    return mean
