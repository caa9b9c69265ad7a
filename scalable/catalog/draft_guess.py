"""What headers let one guess about a survey: roles of columns, errors, bands and times. Guesses, for a person to check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import pyarrow as pa
from astropy.time import Time

from scalable.schema import Column, Schema, parse_unit, standard_unit

_KEY_NAMES = {
    "object_id": ("objectid", "objid", "starid", "sourceid", "coaddobjectid", "diaobjectid", "id"),
    "ra": ("ra", "radeg", "raj2000", "raicrs", "ramean", "alphaj2000", "alphawinj2000", "coordra", "rightascension"),
    "dec": ("dec", "decdeg", "dej2000", "decj2000", "deicrs", "decicrs", "decmean", "deltaj2000", "deltawinj2000", "coorddec",
            "declination"),
}  # fmt: skip
"""Names of key columns, in lower case and without signs, the most telling first."""
_KEY_UCDS = {"object_id": ("meta.id", "id_main"), "ra": ("pos.eq.ra", "pos_eq_ra"), "dec": ("pos.eq.dec", "pos_eq_dec")}

_FILTERS = (
    "FUV", "NUV", "u", "BP", "g", "G", "B", "V", "r", "R", "RP", "i", "I", "z", "Z", "y", "Y", "J", "H", "K", "Ks", "W1", "W2"
)  # fmt: skip
"""Filters in order of wavelength, as they are commonly called."""
_SPACE_FILTER = re.compile(r"F(\d{3,4})(?:LP|[WMNX]\d?)$")
_ERROR_MARKS = tuple(
    map(re.compile, (r"^d(?=[A-Z])", r"(?i)^(?:e|err|error|sig|sigma|unc)_", r"(?i)_?err(?:or)?", r"(?i)_?sigma", r"(?i)_unc"))
)
_MAG = re.compile(r"(?:^|_)mag|Mag|mag(?:_|\d|$)|MAG(?![EN])|MAGNITUDE")
_NO_VALUE = re.compile(r"(?i)flag|radius|fwhm|^n_|ext")

_BAND_KEYS = ("FILTER", "BAND", "FILTER1", "FILTNAM", "FILTNAME", "INSFILTE")
_MJD_KEYS = ("MJD-OBS", "MJD_OBS", "MJDOBS", "MJD", "MJD-AVG", "MJD-BEG")
_DATE_KEYS = ("DATE-OBS", "DATE-AVG", "DATE-BEG")
_FIELD_KEYS = ("FIELDID", "FIELD", "OBJECT")


@dataclass(frozen=True)
class Guess:
    """What a column seems to be, the column of its error, and on what grounds (empty: nothing was guessed)."""

    role: str = ""
    error: str = ""
    grounds: str = ""


@dataclass(frozen=True)
class Observed:
    """What header and name of one file say about its observation; None or an empty text where they say nothing."""

    file: str
    band: str = ""
    mjd: float | None = None
    field: str = ""
    exposure_s: float | None = None
    airmass: float | None = None


def guess_columns(schema: Schema) -> dict[str, Guess]:
    """Return a guess for every column, by UCD, name and unit; each key role goes to one column at most."""
    numbers = [column for column in schema if pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype)]
    guesses = {column.name: Guess() for column in schema}
    for role in _KEY_NAMES:
        ranked = [(rank, column) for column in numbers if (rank := _rank(column, role)) is not None]
        if ranked:
            _, best = min(ranked, key=lambda pair: pair[0])
            guesses[best.name] = Guess(role, grounds="UCD" if _has_ucd(best, _KEY_UCDS[role]) else "name")
    free = [column for column in numbers if not guesses[column.name].role]
    errors = _errors([column.name for column in free])
    of = {error: name for name, error in errors.items()}
    for column in free:
        if column.name not in of:
            role, grounds = _measured(column)
            guesses[column.name] = Guess(role, errors.get(column.name, ""), grounds or ("name" if column.name in errors else ""))
    for error, name in of.items():
        role = guesses[name].role
        guesses[error] = Guess(f"{role}_err" if role in ("flux", "mag") else "", grounds=f"name, error of {name}")
    return guesses


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _has_ucd(column: Column, beginnings: Iterable[str]) -> bool:
    return column.ucd.lower().startswith(tuple(beginnings))


def _rank(column: Column, role: str) -> int | None:
    """Return how well a column fits a key role, less is better, or None if nothing speaks for it."""
    names = _KEY_NAMES[role]
    ucd = _has_ucd(column, _KEY_UCDS[role])
    if ucd and "main" in column.ucd.lower():
        return -1
    if _plain(column.name) in names:
        return names.index(_plain(column.name))
    return len(names) if ucd else None


def _errors(names: list[str]) -> dict[str, str]:
    """Return the name of the error column of each column that has one: the name without a mark of errors is the column's."""
    by_plain = {_plain(name): name for name in names}
    found: dict[str, str] = {}
    for name in names:
        for mark in _ERROR_MARKS:
            base = by_plain.get(_plain(mark.sub("", name, count=1))) if mark.search(name) else None
            if base is not None and base != name and base not in found.values() and name not in found:
                found.setdefault(base, name)
                break
    return found


def _measured(column: Column) -> tuple[str, str]:
    """Return the role of a measurement and the grounds for it."""
    ucd, name = column.ucd.lower(), column.name
    for begin, role in (("phot.mag", "mag"), ("phot_mag", "mag"), ("phot.flux", "flux"), ("phot_flux", "flux")):
        if ucd.startswith(begin):
            return role, "UCD"
    if ucd.startswith("src.class"):
        return "class", "UCD"
    if ucd.startswith("meta.code") or re.search(r"(?i)flag", name):
        return "quality", "UCD" if ucd.startswith("meta.code") else "name"
    if _plain(name) in ("class", "classification"):
        return "class", "name"
    if ucd or _NO_VALUE.search(name) or any(mark.search(name) for mark in _ERROR_MARKS):
        return "", ""
    if re.search(r"(?i)flux", name):
        return "flux", "name"
    if _MAG.search(name):
        return "mag", "name"
    return ("mag", "unit") if column.unit and standard_unit(column.unit) == "mag" else ("", "")


def guess_unit(column: Column, role: str) -> tuple[str, str]:
    """Return the unit to write for a column, empty for none, and a remark on what the header says."""
    header = column.source_unit or column.unit
    if not header:
        if role in ("ra", "dec"):
            return "deg", "no unit in the header; deg is a guess"
        return "", "no unit in the header" if role in ("flux", "mag", "flux_err", "mag_err") else ""
    standard = standard_unit(header)
    if standard is None or parse_unit(standard) is None:
        return "", f"the header says {header!r}, which no standard knows: set unit"
    remark = "" if standard == header else f"the header says {header!r}; the standard writes {standard or 'no unit'}"
    if role in ("mag", "mag_err") and standard not in ("mag", "dex"):
        remark = f"the header says {header!r}, no unit of magnitudes: if these are magnitudes, unit: mag"
    return standard, remark


def observe(file: str, keywords: Mapping[str, object]) -> Observed:
    """Return what a file's keywords, and for band and field its name, say about its observation."""
    match = re.search(r"(?i)field[-_ ]?([a-z0-9]+)", PurePath(file).name)
    return Observed(
        file,
        band=_text(keywords, _BAND_KEYS).split(" ")[0] or band_of(PurePath(file).name),
        mjd=_mjd(keywords),
        field=_text(keywords, _FIELD_KEYS) or (match[1] if match else ""),
        exposure_s=_number(keywords, ("EXPTIME", "EXPOSURE")),
        airmass=_number(keywords, ("AIRMASS",)),
    )


def band_of(name: str) -> str:
    """Return the filter that stands in a file name between separators, or an empty text if none or several do."""
    parts = re.split(r"[^A-Za-z0-9]+", name)[:-1] if "." in name else re.split(r"[^A-Za-z0-9]+", name)
    found = {part for part in parts if part in _FILTERS or _SPACE_FILTER.match(part)}
    return found.pop() if len(found) == 1 else ""


def order_bands(bands: Iterable[str]) -> list[str]:
    """Return the distinct bands in order of wavelength; those that we do not know come last."""

    def place(band: str) -> tuple[float, str]:
        if match := _SPACE_FILTER.match(band):
            # F606W is in nm; infrared wide filters (F160W and longer) are in units of 10 nm.
            size = int(match[1])
            return len(_FILTERS) + (size if size > 199 else 10 * size) / 1e5, band
        return (_FILTERS.index(band) if band in _FILTERS else len(_FILTERS) + 1), band

    return sorted(set(bands) - {""}, key=place)


def _text(keywords: Mapping[str, object], names: Iterable[str]) -> str:
    return next((str(keywords[name]).strip() for name in names if str(keywords.get(name) or "").strip()), "")


def _number(keywords: Mapping[str, object], names: Iterable[str]) -> float | None:
    for name in names:
        try:
            value = float(_text(keywords, [name]))
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return None


def _mjd(keywords: Mapping[str, object]) -> float | None:
    given = _number(keywords, _MJD_KEYS)
    if given is not None:
        return given
    try:
        return float(Time(_text(keywords, _DATE_KEYS).removesuffix("Z"), format="isot").mjd)
    except ValueError:
        return None
