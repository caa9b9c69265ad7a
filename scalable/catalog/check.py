"""`check`: what contradicts itself in a survey's files, from their headers and a sample of rows; each kind is reported once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.condition import parse_condition
from scalable.catalog.ingest_reduce import detections_schema
from scalable.catalog.ingest_reference import reference_columns, reference_sources
from scalable.catalog.ingest_rows import rows_schema
from scalable.catalog.light_curves import floats
from scalable.catalog.variability import statistic_named
from scalable.errors import ColumnError, InputError, MissingInputError, QueryError, ScalableError, SurveyError
from scalable.io.drivers import reader_for
from scalable.io.exposures import list_images, quarantined, shows_another_filter
from scalable.io.fits_image import FitsImage
from scalable.io.observations import read_observations, sources
from scalable.io.reader import Source, TableInfo, TableReader
from scalable.io.rules import apply_rules, factor, stored_schema
from scalable.schema import Column, Schema, is_local_spelling, standard_unit
from scalable.survey.description import Survey

SAMPLE_FILES = 12
SAMPLE_BYTES = 4 << 20
_SENTINELS = (99.0, 99.9, 99.99, 99.999, 999.0, 9999.0, -99.0, -99.99, -999.0, -9999.0, -9.999, -9.999e9, 1e30, -1e30)
_FAINTEST = 90.0
"""No magnitude lies beyond it on either side [mag]."""

_DISK_PATH = re.compile(r"/\w+/|~/|[A-Za-z]:\\|file:")
_USUAL_UNIT = {"ra": "deg", "dec": "deg", "flux": "adu", "flux_err": "adu"}


@dataclass(frozen=True)
class Finding:
    """One kind of contradiction: what it is, where, and the line of the survey file that settles it."""

    name: str
    message: str
    settle: str

    def __str__(self) -> str:
        """Show it as one line and the line that settles it."""
        return f"{self.name}: {self.message}\n    settle it with  {self.settle}"


@dataclass(frozen=True)
class Checked:
    """The outcome of a check: rows and bytes that would be read, and what contradicts itself."""

    files: int
    rows: int
    size_bytes: int
    schema: Schema
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Sample:
    """The first rows of a file under the survey's rules, and how many NaN and nulls each column had before them."""

    source: Source
    table: pa.Table
    nulls: dict[str, int]


def check(survey: Survey, *, on_file: Callable[[int, int], None] | None = None) -> Checked:
    """Read all headers and the first rows of a few files, and list contradictions, each kind once.

    Parameters
    ----------
    survey : Survey
        The description.
    on_file : callable, optional
        Called with the number of headers read and of all.

    Returns
    -------
    Checked
        Findings that the survey's ``accept`` names are left out.
    """
    images, image_bytes, seen = _images(survey) if survey.images else (0, 0, [])
    if not survey.has_tables:
        kept = tuple(f for f in seen if f.name not in survey.accept)
        return Checked(images, 0, image_bytes, Schema(()), kept)
    for name in survey.products.statistics:
        try:
            statistic_named(name)
        except ColumnError as error:
            raise SurveyError(f"products.statistics: {error}") from error
    for source in reference_sources(survey):
        reference_columns(source, survey.grouping)
    reader = reader_for(survey.files.format)
    observations = read_observations(survey)
    listed = sources(survey, observations)
    headers: list[tuple[Source, TableInfo]] = []
    broken: list[tuple[Source, Exception]] = []
    for number, source in enumerate(listed):
        try:
            if source.problem:
                raise InputError(source.problem)
            headers.append((source, reader.describe(source)))
        except (ScalableError, OSError) as error:
            broken.append((source, error))
        if on_file:
            on_file(number + 1, len(listed))
    found = [*_broken(broken), *_file_names(observations), *seen]
    schema = Schema(())
    if headers:
        complete = [pair for pair in headers if not [name for name in survey.columns if name not in pair[1].schema]]
        found += _columns(headers, complete, survey)
        found += [*_filters(headers, survey), *_titles(headers)]
        if complete:
            schema = stored_schema(complete[0][1].schema, survey.columns, path=complete[0][0].path)
            samples = list(_samples(reader, [source for source, _ in complete], schema, survey))
            _check_quality(survey, schema)
            found += [*_units(schema, survey), *_spellings(schema, survey), *_nested(schema), *_meanings(schema, samples, survey)]
            by_object = (_duplicates, _classes) if survey.has_positions else ()
            for look in (_angles, _precision, _counters, _ids, _sentinels, _errors, *by_object):
                found += look(schema, samples)
    rows, size = (sum(getattr(info, name) for _, info in headers) for name in ("rows", "bytes"))
    kept = tuple(f for f in found if f.name not in survey.accept)
    return Checked(len(listed) + images, rows, size + image_bytes, schema, kept)


def _images(survey: Survey) -> tuple[int, int, list[Finding]]:
    """Read the headers of the images: number of files, their bytes, and what contradicts itself."""
    problems, odd, size, rule = [], [], 0, survey.images
    try:
        sources = list_images(survey)
    except MissingInputError as error:
        return 0, 0, [Finding("missing-images", str(error), _accept("missing-images"))]
    for source in sources:
        exposures, files, problem = quarantined(source, survey, FitsImage())
        size += sum(file.size for file in files)
        if problem:
            problems.append(problem)
        odd += [exposure for exposure in exposures if rule and shows_another_filter(exposure, rule)]
    found = []
    if len(problems) == len(sources):
        message = f"none of {len(sources)} files holds an image that can be used: {_list(problems, 3)}"
        found.append(Finding("missing-images", message, f"correct images or fetch them again, or {_accept('missing-images')}"))
    elif problems:
        message = f"{len(problems)} of {len(sources)} files, which cubes will set aside: {_list(problems, 3)}"
        found.append(Finding("unreadable-image", message, f"fetch them again, or {_accept('unreadable-image')}"))
    if odd:
        names = _list((f"{one.name} ({rule.filter_keyword} {one.filter!r}, band {one.band!r})" for one in odd if rule), 3)
        settle = f"images.bands_as, or {_accept('filter-image')}"
        found.append(Finding("filter-image", f"{len(odd)} images: {names}", settle))
    return len(sources), size, found


def _check_quality(survey: Survey, schema: Schema) -> None:
    """Refuse a quality cut that is no condition on the columns that will be stored."""
    stored = detections_schema(schema) if survey.has_positions else rows_schema(schema)
    for name, condition in survey.quality.items():
        try:
            parse_condition(condition, stored.to_arrow())
        except (QueryError, ColumnError) as error:
            raise SurveyError(f"quality.{name}: {error}") from error


def _samples(reader: TableReader, usable: Sequence[Source], schema: Schema, survey: Survey) -> Iterator[Sample]:
    """Read the first rows of the files of one field, then of others: bands of the same field show the same objects."""
    fields = list(dict.fromkeys(source.field for source in usable))
    by_field = sorted(usable, key=lambda source: (fields.index(source.field), source.observation_id))
    for source in by_field[:SAMPLE_FILES]:
        try:
            block = next(iter(reader.scan(source, columns=reader.describe(source).schema.names, block_bytes=SAMPLE_BYTES)))
        except (ScalableError, OSError):
            continue
        table = apply_rules(block, stored_schema(_plain(block), survey.columns, path=source.path), survey.columns)
        yield Sample(source, table, {name: block[name].null_count for name in block.column_names})


def _plain(block: pa.Table) -> Schema:
    return Schema.from_arrow(block.schema)


def _accept(name: str) -> str:
    return f"accept: [{name}]"


def _lines(settings: Iterable[tuple[str, str, str]]) -> str:
    """Return the lines of the survey file that give these columns these settings."""
    return "; ".join(f"columns.{name}.{key}: {value}" for name, key, value in settings)


def _list(names: Iterable[object], most: int = 6) -> str:
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _broken(broken: Sequence[tuple[Source, Exception]]) -> Iterator[Finding]:
    missing = [source.path for source, error in broken if isinstance(error, MissingInputError)]
    unreadable = [str(error) for _, error in broken if not isinstance(error, MissingInputError)]
    if missing:
        yield Finding("missing-file", f"{len(missing)} listed files are absent: {_list(missing)}", _accept("missing-file"))
    if unreadable:
        yield Finding(
            "unreadable-file",
            f"{len(unreadable)} files: {_list(unreadable, 3)}",
            f"fetch them again, or {_accept('unreadable-file')}",
        )


def _columns(
    headers: Sequence[tuple[Source, TableInfo]], complete: Sequence[tuple[Source, TableInfo]], survey: Survey
) -> Iterator[Finding]:
    reference = complete[0][1].schema.names if complete else list(survey.columns)
    odd = []
    for source, info in headers:
        lacks = [name for name in {*reference, *survey.columns} if name not in info.schema]
        extra = [name for name in info.schema.names if name not in reference]
        if lacks or extra:
            odd.append(f"{source.path} ({'lacks ' + _list(sorted(lacks)) if lacks else 'has also ' + _list(extra)})")
    if odd:
        message = f"{len(odd)} of {len(headers)} files, which ingest will set aside: {_list(odd, 3)}"
        yield Finding("different-columns", message, _accept("different-columns"))


def _filters(headers: Sequence[tuple[Source, TableInfo]], survey: Survey) -> Iterator[Finding]:
    odd = []
    for source, info in headers:
        keyword = str(info.keywords.get("FILTER", "")).strip()
        keyword = survey.observations.bands_as.get(keyword, keyword)
        # Long filter names such as "g DECam SDSS c0001" begin with the band.
        if keyword and source.band and keyword.split()[0].lower() != source.band.lower():
            odd.append(f"{source.path} (FILTER {keyword!r}, index {source.band!r})")
    if odd:
        yield Finding("filter-header", f"{len(odd)} files: {_list(odd, 3)}", f"correct the index, or {_accept('filter-header')}")


def _file_names(observations: pa.Table) -> Iterator[Finding]:
    """Compare columns of the index that hold file names, by their ending, with what the templates say."""
    paths = [PurePath(path) for path in observations["path"].to_pylist()]
    for name in observations.column_names:
        if name == "path" or not pa.types.is_string(observations[name].type):
            continue
        pairs = [(text or "", path) for text, path in zip(observations[name].to_pylist(), paths, strict=True)]
        other = [
            (text, path) for text, path in pairs if PurePath(text).suffix == path.suffix and PurePath(text).name != path.name
        ]
        if other and paths[0].suffix:
            message = f"{name} gives other names than files.templates for {len(other)} files: {other[0][0]} is {other[0][1]}"
            yield Finding("index-file-name", message, _accept("index-file-name"))
            return


def _titles(headers: Sequence[tuple[Source, TableInfo]]) -> Iterator[Finding]:
    titles = [(source.path, str(info.keywords.get("EXTNAME", ""))) for source, info in headers]
    odd = [f"{path} (EXTNAME {title!r})" for path, title in titles if _DISK_PATH.match(title)]
    if odd:
        yield Finding(
            "path-in-header", f"{len(odd)} files are named by a path on a disk: {_list(odd, 3)}", _accept("path-in-header")
        )


def _units(schema: Schema, survey: Survey) -> Iterator[Finding]:
    unknown = [c for c in schema if standard_unit(c.source_unit) is None and not _declared(c, survey)]
    if unknown:
        names = _list(f"{c.name} ({c.source_unit})" for c in unknown)
        line = _lines((c.name, "unit", "''") for c in unknown)
        yield Finding("unknown-unit", f"units in no standard: {names}", f"{line} (or the true ones)")
    wrong = [c for c in schema if c.role in ("mag", "mag_err") and c.unit not in ("mag", "dex")]
    if wrong:
        names = _list(f"{c.name} ({c.unit or 'none'})" for c in wrong)
        yield Finding("magnitude-unit", f"not a unit of magnitudes: {names}", _lines((c.name, "unit", "mag") for c in wrong))
    bare = [
        (c.name, _USUAL_UNIT[c.role])
        for c in schema
        if c.role in _USUAL_UNIT and not (c.unit or c.source_unit or _declared(c, survey))
    ]
    if bare:
        line = _lines((name, "unit", unit) for name, unit in bare)
        yield Finding(
            "no-unit", f"fluxes or positions without a unit: {_list(name for name, _ in bare)}", f"{line} (or the true ones)"
        )


def _declared(column: Column, survey: Survey) -> bool:
    """Return whether the survey says what the unit is, be it none."""
    return column.name in survey.columns and survey.columns[column.name].unit is not None


def _spellings(schema: Schema, survey: Survey) -> Iterator[Finding]:
    """List units that are read although no standard spells them so, where the survey does not declare the unit."""
    # A magnitude in ADU is the business of another finding.
    plain = [c for c in schema if c.role not in ("mag", "mag_err") and not _declared(c, survey)]
    odd = [c for c in plain if c.source_unit and is_local_spelling(c.source_unit)]
    if odd:
        names = _list(f"{c.name} ({c.source_unit} as {c.unit or 'no unit'})" for c in odd)
        line = _lines((c.name, "unit", c.unit or "''") for c in odd)
        yield Finding("unit-spelling", f"units that no standard spells so are read as: {names}", line)


def _nested(schema: Schema) -> Iterator[Finding]:
    odd = [c.name for c in schema if pa.types.is_nested(c.dtype)]
    if odd:
        message = f"an array in every row, which is stored but takes no part in cuts, joins and statistics: {_list(odd)}"
        yield Finding("nested-column", message, _accept("nested-column"))


def _meanings(schema: Schema, samples: Sequence[Sample], survey: Survey) -> Iterator[Finding]:
    """Count NaN and nulls of measurements where the survey does not say what they mean."""
    counts = {}
    for column in schema:
        rule = survey.columns.get(column.name)
        if column.role in ("flux", "mag") and rule is not None and "null_state" not in rule.model_fields_set:
            counts[column.name] = sum(sample.nulls[column.name] for sample in samples)
    odd = {name: count for name, count in counts.items() if count}
    if odd:
        names = _list(f"{name} ({count} rows)" for name, count in odd.items())
        line = _lines((name, "null_state", "non_detection") for name in odd)
        yield Finding(
            "null-meaning", f"NaN or null, and nothing says why: {names}", f"{line} (or not_observed, rejected, sentinel)"
        )


def _angles(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    odd, lines = [], []
    for role, full in (("ra", 360.0), ("dec", 90.0)):
        for column in schema.by_role(role):
            largest = float(np.nanmax(np.abs(_values(samples, column.name)), initial=0.0))
            degrees = largest * factor(column.unit or "deg", "deg", column.name)
            said = standard_unit(column.source_unit) if column.source_unit else ""
            # Degrees may be as small as radians are: then only a header that says radians speaks against them.
            conflict = column.unit == "deg" and said == "rad" and np.degrees(largest) <= full * 1.001
            if degrees > full * 1.001 or conflict:
                header = f" (the header says {column.source_unit})" if said else ""
                odd.append(f"{column.name} reaches {largest:g}, read as {column.unit or 'deg'}{header}")
                lines.append(f"columns.{column.name}.unit: {'deg' if column.unit == 'rad' else 'rad'}")
    if odd:
        yield Finding("angle-range", _list(odd), "; ".join(lines))


def _precision(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    steps = []
    for column in (*schema.by_role("ra"), *schema.by_role("dec")):
        if column.dtype == pa.float32():
            values = _values(samples, column.name).astype(np.float32)
            step = float(np.nanmax(np.spacing(np.abs(values)), initial=0.0))
            steps.append(f"{column.name} in steps of {step * factor(column.unit or 'deg', 'arcsec', column.name):.3f} arcsec")
    if steps:
        yield Finding("float32-coordinates", _list(steps), _accept("float32-coordinates"))


def _counters(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    whole = []
    for column in schema:
        plain = pa.types.is_floating(column.dtype) and column.role in ("value", "class", "quality")
        if plain and _whole(_values(samples, column.name)):
            whole.append(column.name)
    if whole:
        yield Finding("float-counter", f"whole numbers stored as floats: {_list(whole)}", _accept("float-counter"))


def _values(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.concatenate([floats(sample.table, name) for sample in samples])


def _whole(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(np.all(finite == np.round(finite)))


def _ids(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    for column in schema.by_role("object_id"):
        exact = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}.get(column.dtype)
        # An integer id may be larger than a float can tell.
        if exact and np.nanmax(np.abs(_values(samples, column.name)), initial=0.0) > exact:
            message = f"{column.name} is {column.dtype} and exceeds {exact:.0f}: neighbouring ids become one"
            yield Finding("float-id", message, f"write {column.name} as a 64-bit integer: no setting brings lost ids back")


def _duplicates(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    if not schema.by_role("object_id"):
        return
    name = schema.by_role("object_id")[0].name
    odd = []
    for sample in samples:
        ids = sample.table[name]
        repeated = len(ids) - len(pc.unique(ids))
        if repeated:
            odd.append(f"{sample.source.path} ({repeated} rows)")
    if odd:
        message = f"objects twice in one observation, later rows will be rejected: {_list(odd, 3)}"
        yield Finding("duplicate-detection", message, _accept("duplicate-detection"))


def _sentinels(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    found: dict[str, list[str]] = {}
    for column in schema:
        if not pa.types.is_floating(column.dtype) or column.role in ("ra", "dec"):
            continue
        values = _values(samples, column.name)
        if column.role == "mag":
            ranges = [("below", values < -_FAINTEST, -_FAINTEST), ("above", values > _FAINTEST, _FAINTEST)]
            suspect = [f"{{{side}: {bound:g}}}" for side, beyond, bound in ranges if beyond.any()]
        elif _whole(values):
            continue  # A counter passes every round number.
        else:
            single = column.dtype == pa.float32()
            written = {sentinel: float(np.float32(sentinel)) if single else sentinel for sentinel in _SENTINELS}
            # Once may be chance; a real measurement rarely hits a round sentinel twice.
            suspect = [f"{sentinel:g}" for sentinel, value in written.items() if np.count_nonzero(values == value) > 1]
        if suspect:
            found[column.name] = suspect
    if found:
        names = _list(f"{name} ({_list(values)})" for name, values in found.items())
        line = _lines((name, "nulls", f"[{', '.join(values)}]") for name, values in found.items())
        yield Finding("sentinel", f"values that look like sentinels: {names}", line)


def _errors(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    odd = {}
    for column in (c for c in schema if c.role in ("flux_err", "mag_err") and pa.types.is_floating(c.dtype)):
        values = _values(samples, column.name)
        count = int(np.count_nonzero(values <= 0))
        if count:
            odd[column.name] = f"{column.name} ({count} rows, least {np.nanmin(values):g})"
    if odd:
        line = _lines((name, "nulls", "[{at_most: 0, state: rejected}]") for name in odd)
        message = f"errors that are not positive: {_list(odd.values())}"
        yield Finding("negative-error", message, f"{line} (or {_accept('negative-error')})")


def _classes(schema: Schema, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Compare the class of the same objects between the two bands of one field that come first."""
    if not schema.by_role("object_id"):
        return
    name = schema.by_role("object_id")[0].name
    for column in schema.by_role("class"):
        pair = _two_bands(samples)
        if pair is None:
            return
        left, right = (sample.table.select([name, column.name]) for sample in pair)
        both = left.join(right, name, right_suffix="_right", join_type="inner")
        differ = pc.sum(pc.not_equal(both[column.name], both[f"{column.name}_right"])).as_py() or 0
        if differ:
            share = f"{differ} of {both.num_rows} objects ({differ / both.num_rows:.0%})"
            bands = f"{pair[0].source.band} and {pair[1].source.band}"
            yield Finding("class-between-bands", f"{column.name} differs for {share} of {bands}", _accept("class-between-bands"))


def _two_bands(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    for second in samples[1:]:
        first = samples[0]
        if second.source.field == first.source.field and second.source.band != first.source.band:
            return first, second
    return None
