"""The page of a run: what went in, what came out, and the plots that a survey team looks at first."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.check import Finding
from scalable.catalog.collection import Collection
from scalable.catalog.light_curves import floats
from scalable.catalog.sql import sql
from scalable.catalog.versions import list_versions
from scalable.cube.contract import open_cube
from scalable.errors import ColumnError, QueryError
from scalable.io.layout import LeafInfo
from scalable.io.parquet import read_leaf
from scalable.report import plots
from scalable.report.cutouts import cube_sections
from scalable.report.page import Section, write_page
from scalable.report.release import release_sections
from scalable.report.sky_map import sky_map
from scalable.report.style import Theme
from scalable.report.training import labels_of, mixture_sections, redshift_sections
from scalable.schema import State
from scalable.sky.healpix import outline
from scalable.survey.description import Survey
from scalable.train.model import open_model
from scalable.train.products import KEY, mixture_rows, photoz_rows, photoz_sides
from scalable.train.sample import draw
from scalable.train.tables import batches_of

MOST_POINTS = 100_000
"""Points in one plot: more would only hide each other, and the page must not grow with the survey."""

LISTED = 10
"""Lines of a list that may be long."""

ByField = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def write_run_page(
    survey: Survey,
    collection: Collection,
    products: Path,
    findings: Sequence[Finding],
    path: Path,
    *,
    progress: Callable[[str, int, int, int], None],
) -> None:
    """Compute what the page shows, a bounded sample of it, and write it as one self-contained file."""
    on_sky: list[Callable[[], list[Section]]] = [
        lambda: [_sky(collection)],
        lambda: [_colour(survey, collection, pair) for pair in survey.products.colours[:1]],
        lambda: _variability(survey, collection, products),
        lambda: _bright(survey, collection),
        lambda: _colour_colour(survey, collection),
        lambda: _cutouts(survey, products),
    ]
    makers: list[Callable[[], list[Section]]] = [
        lambda: [_accounting(collection), _versions(collection)],
        lambda: _problems(collection, findings),
        *(on_sky if collection.has_positions else ()),
        lambda: _learnt(survey, collection, products),
        lambda: _states(collection),
        lambda: _quality(survey, collection),
        lambda: _questions(survey, collection),
        lambda: _release(products),
        lambda: [_how_to_open(collection, products)],
    ]
    sections = []
    for number, make in enumerate(makers):
        progress("report", number, len(makers), 0)
        sections += make()
    count = collection.accounting
    summary = {
        **({"Objects": f"{count['objects']:,}"} if collection.has_positions else {}),
        "Detections" if collection.has_positions else "Rows": f"{count['stored']:,} of {count['read']:,} rows read",
        "Files": f"{count['files'] - count['quarantined']} of {count['files']}",
        "Bands": ", ".join(collection.bands) or "none",
        "Version": collection.path.name,
        "Date": collection.manifest["date"][:10],
        "Survey digest": collection.manifest["survey_digest"][:12],
        "License": survey.license or "not declared",
    }
    text = survey.description or (survey.motivation.text if survey.motivation else "")
    write_page(path, title=survey.name, subtitle=text, sections=sections, summary=summary)
    progress("report", len(makers), len(makers), 0)


def _cutouts(survey: Survey, products: Path) -> list[Section]:
    path = products / "cutouts.zarr"
    if path.exists():
        return cube_sections(open_cube(path))
    absent = "Left out: no image was there when this page was written. A later run makes them once images are there."
    return [Section("Cutouts", absent)] if survey.products.cutouts else []


def _learnt(survey: Survey, collection: Collection, products: Path) -> list[Section]:
    """Show the models that the run taught beside a sample of the rows that they are about."""
    sections, mixture, photoz = [], survey.products.mixture, survey.products.photoz
    if mixture and (products / "mixture.h5").exists():
        batches = batches_of(*mixture_rows(survey, mixture, collection), key=KEY)
        sample = draw(batches, MOST_POINTS, seed=1)
        sections += mixture_sections(open_model(products / "mixture.h5"), sample, labels_of(batches))
    if photoz and (products / "photoz.h5").exists():
        batches, _ = photoz_rows(photoz, collection)
        samples = {name: draw(side, MOST_POINTS, seed=1) for name, side in photoz_sides(photoz, batches).items()}
        sections += redshift_sections(open_model(products / "photoz.h5"), samples, labels_of(batches))
    return sections


def _release(products: Path) -> list[Section]:
    path = products / "release"
    return release_sections(path) if path.exists() else []


def _accounting(collection: Collection) -> Section:
    count = collection.accounting
    names = ["observation_id", "field", "band", "mjd", "epoch", "path", "status", "rows", "rows_stored", "rows_rejected"]
    table = collection.observations
    return Section(
        "Accounting",
        "Every row that was read is either stored or rejected with a reason.",
        figure=partial(
            _accounting_bar,
            count=(count["read"], count["stored"], count["rejected"], count["quarantined"], count["files"]),
        ),
        table=table.select([name for name in names if name in table.column_names]),
        caption="The catalogue files, one row each.",
    )


def _accounting_bar(theme: Theme, count: tuple[int, int, int, int, int]) -> Figure:
    return plots.accounting(*count, theme=theme)


def _versions(collection: Collection) -> Section:
    """List the versions of the store as `scalable log` does."""
    store = collection.path.parents[1]
    # At a URL no folder is listed.
    versions = list_versions(store) if isinstance(store, Path) else []
    columns = {
        "version": [f"{version.number:04d}{' (current)' if version.current else ''}" for version in versions],
        "date (UTC)": [version.date[:16].replace("T", " ") for version in versions],
        "files": [version.files for version in versions],
        "files set aside": [version.quarantined for version in versions],
        "rows added": [version.added for version in versions],
        "rows": [version.stored for version in versions],
    }
    megabytes = pa.array([round(version.added_bytes / 1e6, 1) for version in versions])
    table = pa.table(columns).append_column(pa.field("size added", pa.float64(), metadata={"unit": "MB"}), megabytes)
    text = "Every ingest and append leaves a version, and changes no older one. Files that versions share count for the oldest."
    return Section("Versions", text, table=table, max_rows=LISTED)


def _problems(collection: Collection, findings: Sequence[Finding]) -> list[Section]:
    sections = []
    if findings:
        columns = {key: [getattr(finding, key) for finding in findings] for key in ("name", "message", "settle")}
        text = "What contradicts itself in the input, each kind once, and the line of the survey file that settles it."
        sections.append(Section("Contradictions", text, table=pa.table(columns)))
    if collection.accounting["quarantined"]:
        rows = list(csv.DictReader(io.StringIO((collection.path / "quarantine.csv").read_text(encoding="utf-8"), newline="")))
        table = pa.table({name: [row[name] for row in rows] for name in ("path", "reason")})
        text = "Files that were set aside, and why; all others are in."
        sections.append(Section("Files set aside", text, table=table, max_rows=LISTED))
    counts, first = Counter[str](), pa.table({})
    for rows in collection.iterate_rejected():
        counts.update({row["values"]: row["counts"] for row in rows["reason"].value_counts().to_pylist()})
        first = pa.concat_tables([first, rows.slice(0, LISTED)], promote_options="default").slice(0, LISTED)
    if counts:
        text = f"Rows that were not stored, and why: {', '.join(f'{count:,} {reason}' for reason, count in counts.items())}."
        sections.append(Section("Rejected rows", text, table=first, max_rows=LISTED))
    return sections


def _sky(collection: Collection) -> Section:
    detections = collection.detections
    leaves = detections.leaves
    partition = [number for number, part in enumerate(detections.partitions) for _ in part]
    outlines = [outline(leaf.pixel) for leaf in leaves]
    rows = [leaf.rows for leaf in leaves]
    return Section(
        "Partitions on the sky",
        f"Leaves: {len(leaves)}, partitions: {detections.npartitions}. A leaf holds all detections of its objects.",
        figure=lambda theme: sky_map(outlines, rows, partition, theme=theme),
        table=_orders(leaves),
        caption="HEALPix pixels that hold objects, shaded by their number of detections, and how deep the sky was cut.",
    )


def _orders(leaves: Sequence[LeafInfo]) -> pa.Table:
    """Return leaves and rows by order."""
    order, rows = (np.array(values) for values in zip(*((leaf.pixel.order, leaf.rows) for leaf in leaves), strict=True))
    found = np.unique(order)
    groups = [rows[order == value] for value in found]
    columns = {
        "order": found,
        "side": np.round(np.degrees(np.sqrt(np.pi / 3)) * 60 / 2.0**found, 2),
        "leaves": [len(group) for group in groups],
        "rows": [group.sum() for group in groups],
        "most rows in a leaf": [group.max() for group in groups],
    }
    table = pa.table(columns)
    return table.cast(table.schema.set(1, pa.field("side", pa.float64(), metadata={"unit": "arcmin"})))


def _states(collection: Collection) -> list[Section]:
    """Count what each column holds, by state: from the books where a column has one kind of null, else in one pass over all."""
    catalog, stored = collection.detections if collection.has_positions else collection.rows, collection.accounting["stored"]
    names, nulls = catalog.columns.names, collection.manifest["nulls"]
    states = [state.name.lower() for state in State]
    counts = {name: {catalog.columns[name].null_state or "sentinel": n} for name, n in nulls.items()}
    cells = [(name, state) for name in names if f"{name}_state" in names for state in states[1:]]
    if cells:
        kept = [f"count(*) FILTER (WHERE {_quoted(f'{name}_state')} = {states.index(state)})" for name, state in cells]
        wanted = ", ".join(f"{text} AS n{number}" for number, text in enumerate(kept))
        rows = "detections" if collection.has_positions else "rows"
        [answer] = sql(collection, f"SELECT {wanted} FROM {rows}").compute().to_pylist()
        for (name, state), n in zip(cells, answer.values(), strict=True):
            counts[name] = counts.get(name, {}) | {state: n}
    counts = {name: counts[name] for name in names if any(counts.get(name, {}).values())}
    if not counts:
        return []
    used = [state for state in states if any(count.get(state) for count in counts.values())]
    columns = {state: [count.get(state, 0) for count in counts.values()] for state in used}
    measured = [stored - sum(count.values()) for count in counts.values()]
    text = "Cells without a measured value, by reason; every other column is measured in every row."
    return [Section("Values and nulls", text, table=pa.table({"column": list(counts), "measured": measured, **columns}))]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _one_in(collection: Collection) -> int:
    """Return n so that one object in n gives at most `MOST_POINTS` points."""
    return max(1, -(-collection.accounting["objects"] // MOST_POINTS))


def _sample(catalog: Catalog, one_in: int) -> Catalog:
    return catalog if one_in == 1 else catalog.where(f"abs(object_id) % {one_in} = 0")


def _and_sampled(alias: str, one_in: int) -> str:
    return "" if one_in == 1 else f" AND abs({alias}.object_id) % {one_in} = 0"


def _shown(one_in: int) -> str:
    return "" if one_in == 1 else f" Counts and points are of one object in {one_in}."


def _field_column(collection: Collection) -> str:
    return "o.field" if "field" in collection.observations.column_names else "'all'"


def colour_sql(survey: Survey, collection: Collection, pair: tuple[str, str]) -> str:
    """Return the query behind a colour plot: the first epoch of both bands, by field."""
    magnitude = _quoted(survey.products.magnitude)
    return (
        f"SELECT {_field_column(collection)} AS field, a.object_id, a.{magnitude} - b.{magnitude} AS colour\n"
        "FROM detections a JOIN detections b ON a.object_id = b.object_id\n"
        "JOIN observations o ON a.observation_id = o.observation_id\n"
        "JOIN observations p ON b.observation_id = p.observation_id\n"
        f"WHERE a.band = '{pair[0]}' AND b.band = '{pair[1]}' AND o.epoch = 1 AND p.epoch = 1\n"
        f"AND a.{magnitude} - b.{magnitude} IS NOT NULL{_and_sampled('a', _one_in(collection))}"
    )


def _colour(survey: Survey, collection: Collection, pair: tuple[str, str]) -> Section:
    query = colour_sql(survey, collection, pair)
    found = sql(collection, query).compute()
    fields: ByField = {}
    for name in _sorted(pc.unique(found["field"]).to_pylist()):
        rows = found.filter(pc.equal(found["field"], pa.scalar(name, found["field"].type)))
        fields[str(name)] = (floats(rows, "object_id"), floats(rows, "colour"))
    label = f"{pair[0]} − {pair[1]}"
    return Section(
        f"Colour {label}",
        f"Objects with a first-epoch detection in both bands; {label} above 1.5 mag is highlighted."
        + _shown(_one_in(collection)),
        figure=lambda theme: plots.colour_by_id(fields, label=label, threshold=1.5, theme=theme),
        code=query,
    )


def _sorted(values: Sequence[object]) -> list[object]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _variability(survey: Survey, collection: Collection, products: Path) -> list[Section]:
    wanted, flux = survey.products.variability, survey.products.flux
    if wanted is None or not flux or not (products / "variability_calibrated").exists():
        return []
    name, one_in = f"{wanted.band}_{flux}MaxDeviation", _one_in(collection)
    kinds = ("variability", "variability_calibrated")
    # Both have the same objects in the same order: they are made from the same leaves.
    raw, calibrated = (_sample(open_catalog(products / kind, columns=["object_id", name]), one_in).compute() for kind in kinds)
    ids, values, corrected = raw["object_id"].to_numpy(), floats(raw, name), floats(calibrated, name)
    field_of = _fields_of_objects(collection, one_in)
    fields = {}
    for field in _sorted(list(set(field_of.values()))):
        mine = np.array([field_of.get(i) == field for i in ids.tolist()])
        fields[str(field)] = (ids[mine].astype(float), values[mine], corrected[mine])
    counted = "; ".join(f"field {name}: {_variable(raw, fixed, wanted.threshold)}" for name, (_, raw, fixed) in fields.items())
    text = (
        f"Largest deviation of {flux} from its mean in {wanted.band}, in units of its error. Raw fluxes of different epochs may "
        "differ by their zero points alone: the lower row divides each epoch by its median flux ratio to the first. "
        f"Above {wanted.threshold:g}, {counted}.{_shown(one_in)}"
    )
    table = open_zero_points(products)
    return [
        Section(
            f"Variable objects in {wanted.band}",
            text,
            figure=lambda theme: plots.deviation_by_id(
                fields, label=f"max |{flux} − mean| / error", threshold=wanted.threshold, theme=theme
            ),
            table=table,
            caption="Flux ratio of each epoch to the first one of its field, the median over all objects that both show.",
        )
    ]


def _variable(raw: NDArray[np.float64], calibrated: NDArray[np.float64], threshold: float) -> str:
    if not np.isfinite(raw).any():
        return "undefined, one epoch"
    return f"{np.count_nonzero(raw > threshold):,} raw, {np.count_nonzero(calibrated > threshold):,} calibrated"


def open_zero_points(products: Path) -> pa.Table:
    """Read the zero points that the products were made with."""
    return read_leaf(products / "zero_points.parquet")


def _fields_of_objects(collection: Collection, one_in: int) -> Mapping[int, object]:
    query = (
        f"SELECT d.object_id, min({_field_column(collection)}) AS field FROM detections d "
        f"JOIN observations o ON d.observation_id = o.observation_id WHERE TRUE{_and_sampled('d', one_in)} GROUP BY d.object_id"
    )
    found = sql(collection, query).compute()
    return dict(zip(found["object_id"].to_pylist(), found["field"].to_pylist(), strict=True))


def _bright(survey: Survey, collection: Collection) -> list[Section]:
    wanted, flux, magnitude = survey.products.bright, survey.products.flux, survey.products.magnitude
    error = survey.columns[flux].error if flux else ""
    if wanted is None or not error or not magnitude:
        return []
    bands = wanted.bands or collection.bands
    observations = collection.observations
    first = observations.filter(pc.equal(observations["epoch"], 1))["observation_id"].to_pylist()
    detections = collection.detections.where(f"observation_id in ({', '.join(map(str, first))})")
    joined = join_bands(detections, bands, values=[flux, error, magnitude], pick="first", how="inner")
    condition = " and ".join(f'"{band}_{flux}" / "{band}_{error}" > {wanted.snr:g}' for band in bands)
    found = joined.where(condition)
    count = sql(found, "SELECT count(*) AS n FROM catalog").compute()["n"][0].as_py()
    names = [f"{band}_{magnitude}" for band in bands]
    table = _sample(found, _one_in(collection)).select(*names).compute()
    values = np.column_stack([floats(table, name) for name in names])
    values = values[np.isfinite(values).all(axis=1)]
    return [
        Section(
            f"Well measured in {' '.join(bands)}",
            f"{count:,} objects with {flux} / {error} above {wanted.snr:g} in every band (first epoch).",
            figure=lambda theme: plots.magnitudes(values, bands, theme=theme),
            code=condition.replace(" and ", "\nand "),
        )
    ]


def _colour_colour(survey: Survey, collection: Collection) -> list[Section]:
    if len(survey.products.colours) < 2:
        return []
    pairs = survey.products.colours[:2]
    bands = tuple(dict.fromkeys(band for pair in pairs for band in pair))
    magnitude = survey.products.magnitude
    one_in = _one_in(collection)
    joined = _sample(join_bands(collection.detections, bands, values=[magnitude], pick="first", how="inner"), one_in).compute()
    x, y = (floats(joined, f"{a}_{magnitude}") - floats(joined, f"{b}_{magnitude}") for a, b in reversed(pairs))
    good = np.isfinite(x) & np.isfinite(y)
    labels = tuple(f"{a} − {b} [mag]" for a, b in reversed(pairs))
    return [
        Section(
            "Colour and colour",
            f"Density of {int(good.sum()):,} objects that have all of {', '.join(bands)}." + _shown(one_in),
            figure=lambda theme: plots.colour_colour(x[good], y[good], labels=(labels[0], labels[1]), theme=theme),
        )
    ]


def _quality(survey: Survey, collection: Collection) -> list[Section]:
    """Count what each quality cut keeps, all in one pass."""
    cuts = survey.quality
    if not cuts:
        return []
    counts = ", ".join(f"count(*) FILTER (WHERE {cut}) AS {_quoted(name)}" for name, cut in cuts.items())
    rows = "detections" if collection.has_positions else "rows"
    kept = sql(collection, f"SELECT {counts} FROM {rows}").compute().to_pylist()[0]
    table = pa.table({"cut": list(cuts), "condition": list(cuts.values()), f"{rows} kept": [kept[name] for name in cuts]})
    text = f"{rows.capitalize()}, of {collection.accounting['stored']:,}, that pass each cut alone; all are stored."
    return [Section("Quality cuts", text, table=table)]


def _questions(survey: Survey, collection: Collection) -> list[Section]:
    sections = []
    for question in survey.questions:
        note, answer = question.note, None
        try:
            answer = sql(collection, question.sql).compute()
        except (QueryError, ColumnError) as error:
            # One wrong question must not cost the page.
            note = f"{note} No answer: {error}".strip()
        sections.append(Section(f"{question.id}: {question.title}", note, table=answer, code=question.sql.strip()))
    return sections


def _how_to_open(collection: Collection, products: Path) -> Section:
    if not collection.has_positions:
        return _how_to_open_rows(collection, products)
    code = f"""# SQL from the shell
scalable query "SELECT band, count(*) FROM detections GROUP BY band" --store {collection.path.parents[1]}

# lazily, in Python
import scalable
collection = scalable.open_collection("{collection.path.parents[1]}")
collection.detections.where("band = 'J'").head()

# LSDB
import lsdb
objects = lsdb.open_catalog("{collection.path / "objects"}")

# pandas, or any Parquet reader
import pandas
observations = pandas.read_parquet("{collection.path / "observations.parquet"}")

# TOPCAT
topcat {products / "objects_preview.fits"}"""
    return Section("How to open it", "Catalogues are HATS: Parquet files by HEALPix pixel.", code=code)


def _how_to_open_rows(collection: Collection, products: Path) -> Section:
    store = collection.path.parents[1]
    code = f"""# SQL from the shell
scalable query "SELECT count(*) FROM rows" --store {store}

# lazily, in Python
import scalable
scalable.open_collection("{store}").rows.head()

# pandas, or any Parquet reader
import pandas
rows = pandas.read_parquet("{collection.path / "rows"}")

# TOPCAT
topcat {products / "rows_preview.fits"}"""
    return Section("How to open it", "Tables without positions are Parquet files, each a block of rows.", code=code)
