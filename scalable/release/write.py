"""`write_release`: a store becomes an HDF5 data set that can prove itself, one shard a task, there only when it is whole."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from dask.base import tokenize

from scalable.catalog.collection import Collection
from scalable.cluster import run_tasks
from scalable.errors import AccountingError, ColumnError, InputError, StoreError, SurveyError, nearest
from scalable.io.atomic import holding, publish, write_bytes, write_text
from scalable.io.parquet import read_leaf, write_stream
from scalable.io.remote import local_place
from scalable.io.runs import read_arrow, read_json, write_json
from scalable.kernels.quantile import PASSES, from_sortable, merge_counts, narrow
from scalable.release import manifest as names
from scalable.release.assemble import ORIGINS, Robust
from scalable.release.croissant import croissant
from scalable.release.datasheet import FORMAT_TEXT, datasheet, readme
from scalable.release.drawn import SIMULATED, open_drawn
from scalable.release.fill import Filling, fillings, fit, merge
from scalable.release.images import CubeImages, check_guard, image_entries, image_sources, images_of
from scalable.release.lock import code_digest, lock_file
from scalable.release.loss import label_bias
from scalable.release.manifest import read_manifest, write_sums
from scalable.release.observed import Observed, observed
from scalable.release.parts import (
    Plan,
    Shell,
    as_json,
    bin_edges,
    count_part,
    digest_part,
    draw_part,
    make_part,
    sample_parts,
    shard_path,
    write_drawn,
    write_shard,
)
from scalable.release.provenance import Provenance, write_provenance
from scalable.release.recipe import Impute, Recipe, check_meanings, require_motives
from scalable.release.rows import catalog_of, curve_schema, features
from scalable.release.select import parse_cuts
from scalable.release.sources import of_observations, read_headers
from scalable.release.split import check_split
from scalable.release.summary import column_entries, dataset_attributes, describe
from scalable.release.version import FIRST, Diff, compare_rows, content_digest, next_version
from scalable.release.whole import write_whole
from scalable.survey.description import Survey
from scalable.survey.products import Motivation, Query

QUANTILES = (0.16, 0.5, 0.84)
_GATHERED = 64
"""Most samples that the caller holds at a time."""


def write_release(
    collection: Collection,
    recipe: Recipe,
    *,
    into: str | Path,
    parent: str | Path | None = None,
    cube: str | Path | None = None,
    model: str | Path | None = None,
    fitted: Mapping[str, Any] | None = None,
    on_done: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a release of a store; computes, on the scheduler in use.

    A task holds one leaf: at most about eight times the decoded bytes of the largest leaf, and 128 MB, whatever the images; of a
    cube, 24 bytes an object. The caller holds the index, about 250 bytes a row. Parts are written beside ``into``, published by
    one rename. Killed and called again with the same arguments, it goes on with what is missing, and the files are those of an
    undisturbed call.

    Parameters
    ----------
    collection : Collection
        The store; its input must still be there, for the headers.
    recipe : Recipe
        What the release holds; see `open_recipe`.
    into : str or Path
        Folder to make; must not exist.
    parent : str or Path, optional
        The release that this one follows: its fitted rules are kept, and the version follows from what changed.
    cube : str or Path, optional
        Cutouts that `write_cube` wrote of its objects, for a recipe with images. Objects that it does not have are released with
        pixels that say so.
    model : str or Path, optional
        The mixture that `fit_mixture` gave and that was saved, for a recipe that simulates rows; the release keeps it.
    fitted : mapping, optional
        A manifest, whose rules of outliers and imputation are kept instead of fitting them; by default that of the parent.
    on_done : callable, optional
        Called with the stage, the tasks done and all tasks of it.

    Returns
    -------
    Path
        ``into``, for `open_release`.

    Raises
    ------
    SurveyError, ColumnError, QueryError
        With the lines to add, if something is not described, or a condition is not understood.
    AccountingError
        If a single row is lost or doubled.
    StoreError
        If there is something at ``into``, or it cannot be written.
    """
    destination = local_place(into)
    if destination.exists():
        raise StoreError(f"{destination}: is there already; remove it, or give another path")
    job = _prepare(collection, recipe, parent, fitted, cube, model)
    with working_on(destination, job.token) as work:
        build(job, work, on_done or (lambda *_: None))
        publish(work / "release", destination)
        shutil.rmtree(work, ignore_errors=True)
    return destination


def plan_release(
    collection: Collection,
    recipe: Recipe,
    *,
    parent: str | Path | None = None,
    cube: str | Path | None = None,
    model: str | Path | None = None,
) -> dict[str, Any]:
    """Check all that can be checked before the first task, and say what would be released; reads no rows, writes nothing.

    Returns
    -------
    dict
        ``rows_in``, ``shards`` (about), ``columns``, ``light_curves``, ``rules``, ``simulated`` rows that join them,
        ``decoded_bytes`` of all rows, ``sources``.
    """
    job = _prepare(collection, recipe, parent, None, cube, model)
    books, plan = collection.accounting, job.plan
    rows = books["objects"] if plan.of_objects else books["stored"]
    decoded = rows * plan.row_bytes + books["stored"] * plan.detection_bytes
    return {
        "rows_in": rows,
        "shards": max(len(job.parts), math.ceil(decoded / (recipe.shard_mb * 1e6))),
        "columns": [f.column.name for f in plan.released],
        "light_curves": [f.column.name for f in plan.light_curves],
        "rules": [rule.name for rule in plan.cuts.rules],
        "images": [one.name for one in plan.images.variables] if plan.images else [],
        "simulated": recipe.simulate.rows if recipe.simulate else 0,
        "decoded_bytes": round(decoded),
        "sources": books["files"] - books["quarantined"],
    }


@dataclass(frozen=True)
class Job:
    """A release to be made: what it reads, and everything that was checked before the first task."""

    collection: Collection
    survey: Survey
    recipe: Recipe
    motives: tuple[Motivation, Query]
    plan: Plan
    parts: tuple[Any, ...]
    steps: tuple[dict[str, Any], ...]
    parent: Path | None
    fitted: Mapping[str, Any] | None
    token: str


def _prepare(collection: Collection, recipe: Recipe, parent: str | Path | None, fitted: Mapping[str, Any] | None,
             cube: str | Path | None, model: str | Path | None) -> Job:  # fmt: skip
    """Check all that can be checked without data."""
    survey = Survey.model_validate(read_json(collection.path / "survey.json"))
    motives = require_motives(survey, recipe)
    check_split(recipe.split)
    detections = collection.detections
    catalog = catalog_of(detections, recipe)
    released = features(catalog.schema, survey, recipe)
    curves = features(curve_schema(detections, recipe), survey, recipe) if recipe.rows == "objects" else ()
    images = _images(recipe, cube)
    described = [(column, meaning) for column, meaning, _ in image_entries(images, recipe)] if images else []
    check_meanings([*((f.column, f.meaning) for f in (*released, *curves)), *described])
    known = [f.source for f in released if f.nullable and pa.types.is_floating(f.column.dtype)]
    for asked in recipe.impute:
        for name in (asked.column, *asked.using):
            if name not in known:
                raise ColumnError(f"impute: no column {name!r} of numbers is released; {nearest(name, known)}")
    if (recipe.simulate is None) != (model is None):
        wanted = "a mixture is needed to draw from: give the model" if recipe.simulate else "say how many rows it should draw"
        raise SurveyError(f"{recipe.release}: simulate: {wanted}")
    drawn = open_drawn(local_place(model), recipe.simulate, released) if recipe.simulate and model else None
    plan = Plan("", catalog.chain, catalog.schema, released, curves, recipe,
                parse_cuts(recipe, catalog.schema), collection.bands,
                _observed(collection), images, drawn)  # fmt: skip
    folder = local_place(parent) if parent is not None else None
    before = read_manifest(folder) if folder else None
    fitted = fitted or before
    content = before["content"] if before else ""
    token = tokenize(
        code_digest(),
        collection.manifest["run_id"],
        recipe.model_dump_json(),
        survey.model_dump_json(),
        content,
        fitted,
        images,
        drawn,
    )
    leaves = tuple(sorted(catalog.leaves, key=lambda leaf: leaf.pixel))
    steps = (*catalog.history, *({"step": "impute", **asked.model_dump(mode="json")} for asked in recipe.impute))
    return Job(collection, survey, recipe, motives, plan, leaves, steps, folder, fitted, token)


def _observed(collection: Collection) -> Observed:
    table = collection.observations
    fields = table["field"].to_pylist() if "field" in table.column_names else [""] * table.num_rows
    rows = zip(table["observation_id"].to_pylist(), fields, table["band"].to_pylist(), table["status"].to_pylist(), strict=True)
    return observed([(number, str(field or ""), band or "") for number, field, band, status in rows if status == "stored"],
                    collection.bands)  # fmt: skip


def _images(recipe: Recipe, cube: str | Path | None) -> CubeImages | None:
    """Return the images that a recipe asks for."""
    if recipe.images != (cube is not None):
        raise SurveyError(
            f"{recipe.release}: images: {str(recipe.images).lower()}, and {'a' if cube is not None else 'no'} cube was given; "
            + ("say images: true in the recipe, or give no cube" if cube is not None else "give the cube that write_cube wrote")
        )
    if cube is None:
        return None
    images = images_of(local_place(cube), carried=recipe.codec == "carry")
    check_guard(images, recipe.split)
    return images


@contextmanager
def working_on(destination: Path, token: str) -> Iterator[Path]:
    """Give the folder in which a release grows; what an earlier call with the same token left in it stays.

    Raises
    ------
    StoreError
        If another process is writing it.
    """
    work = destination.parent / f".building-{destination.name}"
    with holding(
        work,
        unwritable=f"{destination}: cannot be written",
        instead="choose another folder",
        busy=f"{destination}: another process is writing it; wait for it",
    ):
        run = work / "run.json"
        if not run.exists() or read_json(run)["token"] != token:
            for name in ("parts", "headers", "release"):
                shutil.rmtree(work / name, ignore_errors=True)
            write_json(run, {"token": token})
        for leftover in work.rglob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        yield work


def build(job: Job, work: Path, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Make every file of a release in ``work/release`` and return its manifest."""
    plan, release = _at(job.plan, work), work / "release"
    release.mkdir(exist_ok=True)
    records = _run("select", make_part, job.parts, tell, plan)
    parts = [piece["part"] for record in records for piece in record["pieces"]]
    if not parts:
        raise StoreError(f"{job.recipe.release}: no row is left; nothing was written. Dropped: {_dropped(records)}")
    before = read_manifest(job.parent) if job.parent else None
    robust = _fit(parts, plan, job.fitted)
    digested = _run("digest", digest_part, parts, tell, plan, robust)
    index = pa.concat_tables([read_arrow(plan.file(part, "index.arrow")) for part in parts])
    if index.num_rows != sum(record["rows"] for record in records):
        raise AccountingError("rows selected and rows indexed do not balance; nothing was written")
    observed_rows, drawn = index, plan.drawn.parts if plan.drawn else []
    simulated = _run("simulate", draw_part, drawn, tell, plan, robust)
    index = pa.concat_tables([index, *(read_arrow(plan.file(part, "index.arrow")) for part in drawn)])
    diff = _diff(job, index)
    version = next_version(before["version"], diff) if before and diff else FIRST
    sources = of_observations(job.collection.observations.to_pydict())
    headers = _run("headers", read_headers, sources, tell, job.survey, str(work))
    first_image = 1 + max(job.collection.observations["observation_id"].to_pylist())
    if plan.images is not None:
        more, paths = image_sources(plan.images, first_image, work)
        sources, headers = (*sources, *more), [*headers, *paths]
    manifest = describe(job.collection, job.survey, job.recipe, job.motives, plan, observed_rows, records, digested, robust)
    if plan.drawn is not None:
        write_bytes(release / names.MODEL, Path(plan.drawn.path).read_bytes())
        manifest["shards"] += simulated
        manifest["accounting"]["simulated"] = plan.drawn.asked.rows
        manifest["origins"][ORIGINS[str(SIMULATED)]] += plan.drawn.asked.rows
    manifest |= {
        "version": version,
        "content": content_digest(index, job.recipe.rows),
        "parent": _parent(before, diff),
        "simulated": plan.drawn.to_json() if plan.drawn else None,
        "steps": list(job.steps),
        "columns": column_entries(plan),
    }
    shell = Shell(_root(manifest), *dataset_attributes(plan), _ranges(manifest["sketches"]))
    histograms = _run("shards", write_shard, parts, tell, plan, robust, str(release), shell)
    _run("simulated shards", write_drawn, drawn, tell, plan, robust, str(release), shell)
    for name, sketch in manifest["sketches"].items():
        if name in shell.ranges:
            sketch["histogram"] = np.sum([found[name] for found, _ in histograms], axis=0).tolist()
    manifest["label_bias"] = {
        key: label_bias([known[key] for _, known in histograms], bin_edges(shell.ranges[key.split(":")[1]]))
        for key in histograms[0][1]
    }
    if job.recipe.whole:
        _run("whole", write_whole, sources, tell, job.survey, str(release), str(work))
    rejected = [plan.file(record["part"], "rejected.arrow") for record in records]
    books = Provenance(sources, tuple(headers), job.collection, tuple(rejected), manifest, plan.images, first_image)
    manifest |= write_provenance(release / names.PROVENANCE, books)
    _check_books(manifest)
    _write_index(index, release)
    size = sum((release / shard_path(part)).stat().st_size for part in (*parts, *drawn))
    manifest["bytes_per_row"] = round(size / index.num_rows, 1)
    write_documents(release, job.survey, manifest, diff)
    write_sums(release)
    return manifest


def _at(plan: Plan, work: Path) -> Plan:
    return Plan(**{**vars(plan), "work": str(work)})


def _run(
    stage: str, task: Callable[..., Any], items: Sequence[Any], tell: Callable[[str, int, int], None], *shared: Any
) -> list[Any]:
    done = 0

    def one(_: Any) -> None:
        nonlocal done
        done += 1
        tell(stage, done, len(items))

    return run_tasks(task, list(items), *shared, on_done=one)


def _dropped(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    total = Counter[str]()
    for record in records:
        total.update(record["dropped"])
    return dict(total)


def _fit(parts: Sequence[str], plan: Plan, kept: Mapping[str, Any] | None) -> Robust:
    """Return what outliers are measured by and cells imputed with: rules that are kept, or order statistics of all rows."""
    far = plan.recipe.outliers.far.columns if plan.recipe.outliers.far else ()
    rule: Mapping[str, Any] = kept["outliers"] if kept else {"columns": None}
    before = fillings(kept) if kept else ()
    again = tuple(rule["columns"] or ()) != far
    fills = {asked: next((one for one in before if one.is_of(asked)), None) for asked in plan.recipe.impute}
    medians = [asked.column for asked, filling in fills.items() if filling is None and not asked.using]
    found, counts = _quantiles(parts, plan, tuple(dict.fromkeys([*(far if again else ()), *medians])))
    filled = tuple(filling or _filling(parts, plan, asked, found, counts) for asked, filling in fills.items())
    if not far:
        return Robust(fills=filled)
    if not again:
        return Robust(far, tuple(rule["middle"]), tuple(rule["half_width"]), rule["fitted_by"], filled)
    widths = tuple((found[name][2] - found[name][0]) / 2 for name in far)
    return Robust(far, tuple(found[name][1] for name in far), widths, FIRST, filled)


def _filling(
    parts: Sequence[str], plan: Plan, asked: Impute, found: Mapping[str, list[float]], counts: Mapping[str, int]
) -> Filling:
    """Return the rule of imputation that a recipe asks for, fitted to the rows that stay.

    Raises
    ------
    InputError
        If there are too few to learn from.
    """
    if not asked.using:
        if not counts[asked.column]:
            raise InputError(f"impute: no row holds {asked.column}: there is no median; leave it empty")
        return Filling(asked.column, asked.method, rows=counts[asked.column], value=found[asked.column][1])
    some = np.array_split(np.array(parts), min(len(parts), _GATHERED))
    return fit(merge(run_tasks(sample_parts, [one.tolist() for one in some], plan, asked), asked), asked)


def _quantiles(parts: Sequence[str], plan: Plan, columns: tuple[str, ...]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the `QUANTILES` of columns of all rows, exactly, 0 of one without a value; and how many values each has."""
    if not columns:
        return {}, {}
    each = len(QUANTILES)
    prefixes = np.zeros(len(columns) * each, dtype=np.uint64)
    ranks = np.zeros(len(prefixes), dtype=np.int64)
    for done in range(PASSES):
        found = run_tasks(count_part, list(parts), plan, columns, prefixes, done, each)
        if not done:
            totals = np.sum([total for _, total in found], axis=0)
            ranks = np.array([int(q * max(0, n - 1)) for n in totals for q in QUANTILES], dtype=np.int64)
        prefixes, ranks = narrow(merge_counts([counts for counts, _ in found]), prefixes, ranks, done)
    values = from_sortable(prefixes).reshape(-1, each)
    values[totals == 0] = 0.0
    return dict(zip(columns, values.tolist(), strict=True)), dict(zip(columns, totals.tolist(), strict=True))


def _diff(job: Job, index: pa.Table) -> Diff | None:
    return compare_rows(index, read_leaf(job.parent / names.INDEX), job.recipe.rows) if job.parent else None


def _parent(before: Mapping[str, Any] | None, diff: Diff | None) -> dict[str, Any] | None:
    if before is None or diff is None:
        return None
    counts = {key: value for key, value in diff.to_json().items() if key != "rows"}
    return {"version": before["version"], "content": before["content"], **counts}


def _root(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes of every shard's root."""
    return {
        "format_version": str(manifest["format_version"]),
        "title": manifest["title"],
        "version": manifest["version"],
        "license": manifest["license"],
        "columns": as_json(manifest["columns"]),
        "bands": as_json(manifest["bands"]),
        "queries": as_json(manifest["query"]),
        "steps_digest": manifest["steps_digest"],
        "flags": as_json(manifest["flags"]),
        "origins": as_json(manifest["origins"]),
        "read_by": as_json(manifest["read_by"]),
        "libraries": as_json(manifest["libraries"]),
    }


def _ranges(sketches: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (s["min"], s["max"]) for name, s in sketches.items() if s.get("n")}


def _check_books(manifest: Mapping[str, Any]) -> None:
    """Refuse books that do not balance, to the row.

    Raises
    ------
    AccountingError
        Naming the numbers.
    """
    books = manifest["accounting"]
    if books["in"] != books["released"] + books["rejected"]:
        raise AccountingError(
            f"{books['in']} rows in, {books['released']} released and {books['rejected']} rejected do not balance; "
            "nothing was written"
        )


def _write_index(index: pa.Table, release: Path) -> None:
    batch = 100_000
    pieces = (index.slice(start, batch) for start in range(0, index.num_rows, batch))
    write_stream(pieces, index.schema, release, names.INDEX)


def write_documents(release: Path, survey: Survey, manifest: Mapping[str, Any], diff: Diff | None) -> None:
    """Write everything that people and other tools read: manifest, datasheet, Croissant, README, code, the diff."""
    # As it is read again: what follows from the manifest follows from the file.
    manifest = json.loads(as_json(manifest))
    write_json(release / names.MANIFEST, manifest)
    for name, value in documents(manifest, names.file_digest(release / names.INDEX)).items():
        write_text(release / name, value)
    if diff is not None:
        write_json(release / f"DIFF-{manifest['parent']['version']}.json", diff.to_json())
    code = release / names.CODE
    write_text(code / "survey.yaml", survey_text(survey))
    write_text(code / "recipe.yaml", yaml.safe_dump(manifest["recipe"], sort_keys=False, allow_unicode=True, width=120))
    write_text(code / "lock.txt", lock_file())
    write_text(code / "format.md", FORMAT_TEXT)


def documents(manifest: Mapping[str, Any], index_sha256: str) -> dict[str, str]:
    """Return the documents that follow from the manifest, by the names of their files."""
    return {
        names.DATASHEET: as_json(datasheet(manifest)) + "\n",
        names.CROISSANT: as_json(croissant(manifest, index_sha256)) + "\n",
        names.README: readme(manifest),
    }


def survey_text(survey: Survey) -> str:
    """Return the survey description as a release keeps it: with the root wherever its reader has the sources."""
    # The recipe stands beside it, not where its writer had it.
    products = survey.products.model_copy(update={"release": ""})
    values = survey.model_copy(update={"products": products}).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    values |= {"root": "${SCALABLE_SOURCES:-.}"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
