"""A sky on disk: FITS tables, an index of observations and a survey description, all clean or damaged on purpose."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

from scalable.errors import InputError, SurveyError, nearest
from scalable.schema import Column
from scalable.synthetic.sky import DETECTIONS, STAR, Sky, SkySpec, detections

DAMAGE = {
    "truncated": "the file ends in the middle of a row, half way through its data",
    "missing_column": "the column Flux1 is not there",
    "absent": "the index lists the file and it was not written",
    "duplicate": "the first hundredth of the rows (at least one) is repeated, bit for bit, at the end",
}
MISSING_COLUMN = "Flux1"

# Arrow type → FITS format letter, big-endian NumPy type.
_FORMATS = {
    pa.uint8(): ("B", "u1"),
    pa.int16(): ("I", ">i2"),
    pa.int32(): ("J", ">i4"),
    pa.int64(): ("K", ">i8"),
    pa.float32(): ("E", ">f4"),
    pa.float64(): ("D", ">f8"),
}
_BLOCK = 2880

HeaderValue = str | int | float | bool


RECIPE = Path(__file__).with_name("release.yaml")
"""Of the release of a synthetic sky."""


def write_tables(sky: Sky, folder: Path, *, bad: Sequence[str] = (), position_dtype: Literal["D", "E"] = "D") -> Path:
    """Write a sky as a survey: tables, index, truth and description.

    ``folder`` then holds ``observations.csv``, ``tables/Field-1-J.fits`` …, ``truth.parquet`` (``sky.stars``) and
    ``survey.yaml``. The same sky gives the same bytes.

    Parameters
    ----------
    sky : Sky
        What `scalable.synthetic.sky.make_sky` returned.
    folder : Path
        Made if it is not there; files of an earlier sky in it are overwritten, not removed.
    bad : sequence of str
        Keys of `DAMAGE`; each damages one file, another for each kind, the one that `damaged_files` names.
    position_dtype : {"D", "E"}
        Store ``Ra`` and ``Dec`` (rad) in 8 bytes, or in 4 as the real tables do: then they are right to 0.05 arcsec only.

    Returns
    -------
    Path
        The survey description.

    Raises
    ------
    SurveyError
        If a kind of damage is not known, or the sky has too few files for it.
    """
    damage = {path: kind for kind, path in damaged_files(sky, bad).items()}
    folder = Path(folder)
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for row, relative in enumerate(table_paths(sky)):
        table = _with_positions(detections(sky, row + 1), position_dtype)
        _write_observation(table, folder / relative, _observation_header(sky, row), damage.get(relative, ""))
    _write_index(sky.observations, folder / "observations.csv")
    pq.write_table(sky.stars, folder / "truth.parquet")
    description = folder / "survey.yaml"
    description.write_text(survey_yaml(sky.spec), encoding="utf-8")
    return description


def write_fits(table: pa.Table, path: Path, header: Mapping[str, HeaderValue]) -> None:
    """Write one binary table, column by column, without a date: equal input gives equal bytes.

    Parameters
    ----------
    table : pyarrow.Table
        Numbers, of types that FITS has; the field metadata ``unit`` becomes ``TUNIT``.
    path : Path
        Overwritten if it is there.
    header : mapping
        Keywords of the primary header.

    Raises
    ------
    InputError
        If a column has a type that is not written here, or nulls and no NaN to stand for them.
    """
    rows = _big_endian(table, path)
    with Path(path).open("wb") as file:
        file.write(_primary_header(header))
        file.write(_table_header(table.schema, len(rows)))
        # A view of bytes goes to the file in one piece.
        file.write(rows.view(np.uint8).data)
        file.write(bytes(_padding(rows.nbytes)))


def table_paths(sky: Sky) -> list[str]:
    """Return the paths of the tables below the survey's folder, in the order of ``sky.observations``."""
    columns = (sky.observations["FieldID"], sky.observations["Filter"], sky.calibration["Epoch"])
    return [
        f"tables/Field-{number}-{band}-E{epoch:03d}.fits"
        if band in sky.spec.epoch_bands
        else f"tables/Field-{number}-{band}.fits"
        for number, band, epoch in zip(*(column.to_pylist() for column in columns), strict=True)
    ]


def damaged_files(sky: Sky, bad: Sequence[str]) -> dict[str, str]:
    """Return which file (path below the survey's folder) each kind of damage in ``bad`` befalls.

    A kind always befalls the same file of a sky, whatever other kinds are asked for.
    """
    for kind in bad:
        if kind not in DAMAGE:
            raise SurveyError(f"no such damage {kind!r}; {nearest(kind, DAMAGE)}")
    paths, kinds = table_paths(sky), list(DAMAGE)
    if bad and len(paths) < len(kinds):
        raise SurveyError(f"a sky with {len(paths)} tables is too small to be damaged; it needs at least {len(kinds)}")
    return {kind: paths[kinds.index(kind) * len(paths) // len(kinds)] for kind in bad}


def _write_observation(table: pa.Table, path: Path, header: Mapping[str, HeaderValue], damage: str) -> None:
    """Write one table, whole or damaged (see `DAMAGE`)."""
    if damage == "absent":
        path.unlink(missing_ok=True)
        return
    if damage == "missing_column":
        table = table.drop_columns([MISSING_COLUMN])
    if damage == "duplicate":
        table = pa.concat_tables([table, table.slice(0, max(1, len(table) // 100))])
    write_fits(table, path, header)
    if damage == "truncated":
        _truncate(path, table)


def _truncate(path: Path, table: pa.Table) -> None:
    """Cut a table's file in the middle of the row half way; one without rows loses half of its last header block."""
    width = _row_type(table.schema, path).itemsize
    size = len(table) * width
    start = path.stat().st_size - size - _padding(size)
    with path.open("r+b") as file:
        file.truncate(start + len(table) // 2 * width + width // 2 if size else start - _BLOCK // 2)


def _padding(size: int) -> int:
    """Return how many bytes fill up the last FITS block."""
    return -size % _BLOCK


def _observation_header(sky: Sky, row: int) -> dict[str, HeaderValue]:
    """Return the primary header of an observation's table."""
    [observation] = sky.observations.slice(row, 1).to_pylist()
    return {
        "TELESCOP": "SYNTHETIC",
        "FILTER": observation["Filter"],
        "MJD-OBS": observation["MJD"],
        "EXPTIME": observation["Exptime"],
        "AIRMASS": observation["Airmass"],
        "MAGZPT": sky.calibration["ZeroPoint"][row].as_py(),
    }


def _with_positions(table: pa.Table, dtype: Literal["D", "E"]) -> pa.Table:
    """Return the table with positions in 8 or in 4 bytes."""
    if dtype == "D":
        return table
    for name in ("Ra", "Dec"):
        values = table[name].to_numpy().astype(np.float32)
        if name == "Ra":
            # The nearest 4-byte number may be a full turn, which the next reader would take for 360 deg.
            values[values.astype(np.float64) >= 2 * np.pi] = 0.0
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index).with_type(pa.float32()), pa.array(values))
    return table


# FITS.


def _row_type(schema: pa.Schema, path: Path) -> np.dtype[np.void]:
    """Return the packed big-endian type of a row."""
    for field in schema:
        if field.type not in _FORMATS:
            raise InputError(f"{path}: column {field.name!r} is {field.type}; {nearest(str(field.type), map(str, _FORMATS))}")
    return np.dtype([(field.name, _FORMATS[field.type][1]) for field in schema])


def _big_endian(table: pa.Table, path: Path) -> NDArray[np.void]:
    """Return the rows as FITS stores them, shape (n,)."""
    rows = np.empty(len(table), dtype=_row_type(table.schema, path))
    for name in table.column_names:
        column = table[name]
        if column.null_count and not pa.types.is_floating(column.type):
            raise InputError(f"{path}: column {name!r} ({column.type}) has {column.null_count} nulls; fill them first")
        rows[name] = column.to_numpy()
    return rows


def _primary_header(keywords: Mapping[str, HeaderValue]) -> bytes:
    header = fits.Header(
        [
            ("SIMPLE", True, "conforms to FITS standard"),
            ("BITPIX", 8, "array data type"),
            ("NAXIS", 0, "number of array dimensions"),
            ("EXTEND", True),
            *keywords.items(),
        ]
    )
    return header.tostring().encode("ascii")


def _table_header(schema: pa.Schema, n: int) -> bytes:
    cards: list[tuple[str, HeaderValue]] = [
        ("XTENSION", "BINTABLE"),
        ("BITPIX", 8),
        ("NAXIS", 2),
        ("NAXIS1", sum(field.type.bit_width // 8 for field in schema)),
        ("NAXIS2", n),
        ("PCOUNT", 0),
        ("GCOUNT", 1),
        ("TFIELDS", len(schema)),
    ]
    for number, field in enumerate(schema, start=1):
        cards += [(f"TTYPE{number}", field.name), (f"TFORM{number}", _FORMATS[field.type][0])]
        if unit := Column.from_field(field).unit:
            cards.append((f"TUNIT{number}", unit))
    return fits.Header(cards).tostring().encode("ascii")


# Index and description.


def _write_index(observations: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(observations.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in observations.columns), strict=True))


def add_mixture(folder: Path, bands: Sequence[str] = ("Y", "J", "H")) -> None:
    """Let a run of a survey that `write_tables` wrote fit a mixture to the colours of its stars."""
    path = folder / "survey.yaml"
    stars = f"classes: [{STAR}], rule: {bands[0]}"
    wanted = f"products:\n  mixture: {{bands: {_listed(bands)}, components: [1, 3, 5, 10], {stars}, rows: 20000}}\n"
    path.write_text(path.read_text().replace("products:\n", wanted, 1))


def survey_yaml(spec: SkySpec) -> str:
    """Return the survey description, as YAML text, of a sky that `write_tables` wrote."""
    lines = [
        "survey: synthetic",
        f"description: A synthetic sky from seed {spec.seed}",
        "root: .",
        "observations:",
        "  index: observations.csv",
        "  id: ID",
        "  field: FieldID",
        "  band: Filter",
        "  mjd: MJD",
        "  exposure_s: Exptime",
        "  airmass: Airmass",
        "files:",
        "  format: fits",
        "  hdu: 1",
        "  templates:",
        *_template_lines(spec),
        f"bands: {_listed(spec.bands)}",
        "columns:",
        *(_column_line(column) for column in DETECTIONS),
        "store:",
        "  margin_arcsec: 5",
        "  leaf_mb: 0.25",
        "products:",
        *_product_lines(spec),
        "accept: []",
        "motivation:",
        "  text: 'A sky whose truth is known: to try the software, to test it and to measure it.'",
        "  goal: Tell variable stars from constant ones by their light curves.",
        "  requirements: {epochs: several of each object with fluxes and errors, colour: magnitudes in every band}",
        f'query: {{text: "synthetic sky, seed {spec.seed}, all detections"}}',
        "license: CC0-1.0",
    ]
    return "\n".join(lines) + "\n"


def add_release(folder: Path) -> None:
    """Add the recipe of a release of a survey that `write_tables` wrote, all its bands and light curves."""
    (folder / "release.yaml").write_text(RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    path = folder / "survey.yaml"
    text = path.read_text().replace("products:\n", "products:\n  release: release.yaml\n", 1)
    # A shard for each of ninety tiny leaves would cost more than all that is in them.
    path.write_text(text.replace("leaf_mb: 0.25", "leaf_mb: 1"))


def _template_lines(spec: SkySpec) -> list[str]:
    """Return the file-name templates; the first that holds a band counts."""
    plain = "    - path: tables/Field-{FieldID}-{Filter}.fits"
    if not spec.epoch_bands:
        return [plain]
    return [
        f"    - bands: {_listed(spec.epoch_bands)}",
        "      path: tables/Field-{FieldID}-{Filter}-E{epoch:03d}.fits",
        plain,
    ]


def _column_line(column: Column) -> str:
    error = f"error: {column.error}, " if column.error else ""
    # A JSON string is a YAML string, commas and all.
    text = json.dumps(column.description) if "," in column.description else column.description
    return f"  {column.name}: {{role: {column.role}, unit: {column.unit or repr('')}, {error}description: {text}}}"


def _product_lines(spec: SkySpec) -> list[str]:
    """Return the products that the bands allow."""
    colours = [pair for pair in (("J", "H"), ("Y", "J")) if set(pair) <= set(spec.bands)]
    if not colours and len(spec.bands) > 1:
        colours = [(spec.bands[0], spec.bands[1])]
    lines = [f"  colours: [{', '.join(map(_listed, colours))}]", "  magnitude: Mag1", "  flux: Flux1"]
    if spec.epoch_bands:
        lines.append(f"  variability: {{band: {spec.epoch_bands[0]}, threshold: 20}}")
    return [*lines, f"  bright: {{snr: 30, bands: {_listed(spec.bands)}}}"]


def _listed(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"
