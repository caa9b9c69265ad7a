"""Level 3 of verify: sources, headers and sampled rows, read again from the bytes of the sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.ingest_reduce import detections_schema
from scalable.catalog.steps import NO_LOADER, Chain, apply_steps
from scalable.errors import InputError, ScalableError
from scalable.io.drivers import reader_for
from scalable.io.layout import HEALPIX_COLUMN, META_KEY
from scalable.io.observations import read_observations, sources
from scalable.io.parquet import read_leaf
from scalable.io.reader import Source
from scalable.io.remote import local_copy
from scalable.io.rules import apply_rules, stored_schema
from scalable.release import manifest as names
from scalable.release.assemble import Arrays, Robust, assemble, light_curve_arrays
from scalable.release.drawn import are_drawn, difference, drawn_arrays, open_drawn
from scalable.release.fill import fillings
from scalable.release.manifest import read_manifest
from scalable.release.observed import observed
from scalable.release.parts import as_json
from scalable.release.recipe import Recipe, Simulate, parse_recipe
from scalable.release.rows import catalog_of, curve_schema, features
from scalable.release.select import parse_cuts
from scalable.release.sources import SourceFile, headers_of, source_digest
from scalable.release.summary import entries
from scalable.schema import Schema
from scalable.sky.healpix import to_pixels
from scalable.survey.description import Survey

Found = Iterator[tuple[str, str]]
"""Where, and what is wrong there: nothing for what is as it should be."""


def listed_sources(folder: Path) -> list[SourceFile]:
    """Return the sources that a release names."""
    with h5py.File(folder / names.PROVENANCE, "r") as file:
        group = file["sources"]
        columns = (group["source_id"][()].tolist(), group["uri"].asstr()[()].tolist(), group["sha256"].asstr()[()].tolist(),
                   group["size"][()].tolist(), group["kind"].asstr()[()].tolist())  # fmt: skip
    return [SourceFile(*row) for row in zip(*columns, strict=True)]


def check_sources(folder: Path, survey: Survey) -> Found:
    """Yield every source, with what is wrong where its file is not the one that was read."""
    for source in listed_sources(folder):
        try:
            digest, size = source_digest(source, survey, "")
        except ScalableError as error:
            yield f"{names.PROVENANCE}: sources: {source.uri}", str(error)
            continue
        same = (digest, size) == (source.sha256, source.size_bytes)
        yield (
            f"{names.PROVENANCE}: sources: {source.uri}",
            "" if same else f"has other bytes than those that were read (sha256 {digest})",
        )


def stored_headers(folder: Path) -> dict[int, list[bytes]]:
    """Return the raw headers of every source, by its number."""
    found: dict[int, list[bytes]] = {}
    with h5py.File(folder / names.PROVENANCE, "r") as file:
        group, at = file["headers"], 0
        for number, length in zip(group["source_id"][()].tolist(), group["length"][()].tolist(), strict=True):
            found.setdefault(number, []).append(group["blocks"][at : at + length].tobytes())
            at += length
    return found


def check_headers(folder: Path, survey: Survey) -> Found:
    """Yield every header of every source, with the first card that is not the source's."""
    stored = stored_headers(folder)
    for source in listed_sources(folder):
        try:
            there = headers_of(source, survey, "")["raw"]
        except (ScalableError, OSError) as error:
            yield f"{names.PROVENANCE}: headers: {source.uri}", str(error)
            continue
        mine = stored.get(source.source_id, [])
        if len(mine) != len(there):
            yield f"{names.PROVENANCE}: headers: {source.uri}", f"{len(mine)} headers are kept, the file has {len(there)}"
        for hdu, (kept, read) in enumerate(zip(mine, there, strict=False)):
            yield f"{names.PROVENANCE}: headers: {source.uri}: HDU {hdu}", _first_card(kept, read)


def _first_card(kept: bytes, read: bytes) -> str:
    if kept == read:
        return ""
    cards = [(kept[at : at + 80], read[at : at + 80]) for at in range(0, max(len(kept), len(read)), 80)]
    here, there = next(pair for pair in cards if pair[0] != pair[1])
    return f"card {here.decode('latin-1').strip()!r} is {there.decode('latin-1').strip()!r} in the source"


def sampled(folder: Path, samples: int, among: NDArray[np.bool_] | None = None) -> pa.Table:
    """Return the entries of the index with the smallest digests: as good as drawn by lot, and the same for everybody."""
    index = read_leaf(folder / names.INDEX)
    digests = np.frombuffer(b"".join(row[:8] for row in index["row_digest"].to_pylist()), ">u8")
    rows = np.arange(len(digests)) if among is None else np.flatnonzero(among)
    return index.take(pa.array(np.sort(rows[np.argsort(digests[rows], kind="stable")[:samples]])))


def check_samples(folder: Path, survey: Survey, samples: int) -> Found:
    """Yield sampled rows, each with the columns that do not come out of the source's bytes as they are released."""
    manifest = read_manifest(folder)
    recipe = parse_recipe(manifest["recipe"], names.MANIFEST)
    again = _Again(survey, recipe, manifest, {one.source_id for one in listed_sources(folder) if one.kind == "table"})
    yield from again.columns(manifest["columns"])
    chosen = sampled(folder, samples, ~are_drawn(read_leaf(folder / names.INDEX)))
    for path in dict.fromkeys(chosen["shard"].to_pylist()):
        rows = chosen.filter(pa.array(np.asarray(chosen["shard"].to_pylist()) == path))["row"].to_numpy()
        yield from again.compare(folder, path, rows)


def check_simulated(folder: Path, survey: Survey) -> Found:
    """Yield every simulated row, drawn again from the mixture that the release keeps."""
    manifest = read_manifest(folder)
    recipe = parse_recipe(manifest["recipe"], names.MANIFEST)
    again = _Again(survey, recipe, manifest, {one.source_id for one in listed_sources(folder) if one.kind == "table"})
    if recipe.simulate is None:
        yield f"{names.MANIFEST}: simulated", "names a mixture, the recipe simulates nothing"
        return
    yield from again.drawn(folder, recipe.simulate, manifest)


class _Again:
    """Makes rows of a release again from the bytes of its sources."""

    def __init__(self, survey: Survey, recipe: Recipe, manifest: Mapping[str, Any], stored: set[int]) -> None:
        self._survey, self._recipe = survey, recipe
        self._sources = {source.observation_id: source for source in sources(survey, read_observations(survey))}
        known = [one for number, one in self._sources.items() if number in stored]
        self._observed = observed([(one.observation_id, one.field, one.band) for one in known], survey.bands)
        first = known[0]
        self._found = self._described(first)
        meta = {META_KEY: as_json({"bands": list(survey.bands), "survey": survey.name}).encode()}
        self._schema = detections_schema(self._found).to_arrow().with_metadata(meta)
        detections = Catalog(Chain(NO_LOADER), (), self._schema, survey.name)
        catalog = catalog_of(detections, recipe)
        self._steps, self._rows_schema = catalog.chain.steps, catalog.schema
        self._released = features(catalog.schema, survey, recipe)
        self._curves = features(curve_schema(detections, recipe), survey, recipe) if recipe.rows == "objects" else ()
        self._images = {column["name"] for column in manifest["columns"] if column["in"] == "images"}
        self._cuts = parse_cuts(recipe, catalog.schema)
        rule = manifest["outliers"]
        self._robust = Robust(tuple(rule["columns"]), tuple(rule["middle"]), tuple(rule["half_width"]), rule["fitted_by"],
                              fillings(manifest))  # fmt: skip

    def _described(self, source: Source) -> Schema:
        with local_copy(source.path) as path:
            info = reader_for(self._survey.files.format).describe(Source(path, source.hdu, table=source.table))
        return stored_schema(info.schema, self._survey.columns, path=source.path)

    def columns(self, listed: Sequence[Mapping[str, Any]]) -> Found:
        """Yield every column with what the manifest says of it and survey, recipe and source do not."""
        made = {(entry["in"], entry["name"]): entry for entry in entries(self._released, self._curves, self._recipe)}
        there = {(entry["in"], entry["name"]): entry for entry in listed if entry["in"] != "images"}
        for key in [*made, *(key for key in there if key not in made)]:
            one, other = made.get(key, {}), there.get(key, {})
            wrong = [f"{name} is {other.get(name)!r}, the survey gives {one.get(name)!r}" for name in sorted({*one, *other})
                     if one.get(name) != other.get(name)]  # fmt: skip
            yield f"{names.MANIFEST}: {key[1]}", "; ".join(wrong)

    def drawn(self, folder: Path, asked: Simulate, manifest: Mapping[str, Any]) -> Found:
        """Yield what the manifest says of simulated rows, then each of them."""
        mixture = open_drawn(folder / names.MODEL, asked, self._released)
        yield f"{names.MANIFEST}: simulated", difference(manifest["simulated"], mixture)
        for shard in manifest["shards"]:
            if not shard.get("simulated"):
                continue
            path, span = shard["path"], mixture.span_of(shard["path"])
            made = drawn_arrays(mixture, span, self._rows_schema, self._released, self._recipe, self._cuts, self._robust,
                                self._survey.bands)  # fmt: skip
            with h5py.File(folder / path, "r") as file:
                released = {name: _values(file[name], slice(None)) for name in file if name not in self._images}
            wrong: list[set[str]] = [set() for _ in range(*span)]
            _note(wrong, np.arange(len(wrong)), made, released)
            for row, columns in enumerate(wrong):
                yield f"{path}: row {row}", f"{', '.join(sorted(columns))} not as the mixture gives" if columns else ""

    def compare(self, folder: Path, path: str, rows: NDArray[np.int64]) -> Found:
        """Yield the given rows of a shard."""
        with h5py.File(folder / path, "r") as file:
            released = {name: _values(file[name], rows) for name in file if name not in self._images}
            counts = released.get("lc_count")
            if counts is None:
                places = {name: released[name] for name in ("object_id", "source_id", "source_row")}
                curves: Arrays = {}
            else:
                spans = [np.arange(a, a + n) for a, n in zip(released["lc_offset"].tolist(), counts.tolist(), strict=True)]
                with h5py.File(folder / f"{path.removesuffix('.h5')}.lightcurves.h5", "r") as beside:
                    curves = {name: _values(beside[name], np.concatenate(spans)) for name in beside}
                places = {name: curves[name] for name in ("object_id", "source_id", "source_row")}
        owner = np.repeat(np.arange(len(rows)), counts) if counts is not None else np.arange(len(rows))
        try:
            table = self._read(places, released["ra"][owner], released["dec"][owner])
        except ScalableError as error:
            yield path, str(error)
            return
        wrong: list[set[str]] = [set() for _ in rows]
        if counts is not None:
            made = light_curve_arrays(table, self._curves)
            _note(wrong, owner, made, curves)
        result = apply_steps(table, self._steps, self._rows_schema.names).cast(self._rows_schema.remove_metadata())
        keys = {name: released[name] for name in ("source_id", "source_row")} | (
            {"lc_count": counts} if counts is not None else {}
        )
        if result.num_rows != len(rows):
            yield path, f"the sources give {result.num_rows} rows where {len(rows)} were released"
            return
        if counts is not None:
            absent = self._observed.absent(table, np.concatenate([[0], np.cumsum(counts)]))
            for name in absent.column_names:
                result = result.append_column(name, absent[name])
        made = assemble(result, keys, self._released, self._recipe, self._cuts, self._robust)
        _note(wrong, np.arange(len(rows)), {name: values for name, values in made.items() if name != "lc_offset"}, released)
        for row, number, columns in zip(rows.tolist(), released["object_id"].tolist(), wrong, strict=True):
            problem = f"object {number}: {', '.join(sorted(columns))} not as the source gives" if columns else ""
            yield f"{path}: row {row}", problem

    def _read(self, places: Mapping[str, NDArray[np.int64]], ra: NDArray[np.float64], dec: NDArray[np.float64]) -> pa.Table:
        """Return detections from the sources as the store would hold them, in the given order."""
        order, pieces = [], []
        for number in np.unique(places["source_id"]).tolist():
            if number not in self._sources:
                raise InputError(f"source {number} is none that the survey lists")
            mine = np.flatnonzero(places["source_id"] == number)
            mine = mine[np.argsort(places["source_row"][mine], kind="stable")]
            pieces.append(self._rows_of(self._sources[number], places["source_row"][mine]))
            order.append(mine)
        where = np.concatenate(order)
        back = np.empty(len(where), dtype=np.int64)
        back[where] = np.arange(len(where))
        own = pa.concat_tables(pieces).take(pa.array(back))
        known = [self._sources[number] for number in places["source_id"].tolist()]
        ids = [name for name, rule in self._survey.columns.items() if rule.role == "object_id"]
        columns: dict[str, Any] = {name: own[name] for name in own.column_names} | {
            HEALPIX_COLUMN: to_pixels(ra, dec),
            # What is grouped by position gets its id from the store: level 4 makes it again.
            "object_id": own[ids[0]].cast(pa.int64()) if ids else places["object_id"],
            "object_ra": ra,
            "object_dec": dec,
            "observation_id": places["source_id"],
            "band": pa.array([source.band for source in known]),
            "mjd": pa.array([source.mjd for source in known]),
            "source_row": places["source_row"],
        }
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _rows_of(self, source: Source, rows: NDArray[np.int64]) -> pa.Table:
        """Return rows of one file, sorted by number, under the survey's rules."""
        found, first = [], 0
        with local_copy(source.path) as path:
            here = Source(path, source.hdu, table=source.table)
            for block in reader_for(self._survey.files.format).scan(here):
                inside = rows[(rows >= first) & (rows < first + block.num_rows)] - first
                if len(inside):
                    found.append(apply_rules(block.take(pa.array(inside)), self._found, self._survey.columns))
                first += block.num_rows
        if sum(piece.num_rows for piece in found) != len(rows):
            raise InputError(f"{source.name}: has {first} rows, row {int(rows[-1])} of it was released")
        return pa.concat_tables(found)


def _values(dataset: h5py.Dataset, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
    """Return rows of a dataset: it is read whole, for the rows lie anywhere in it."""
    text = h5py.check_string_dtype(dataset.dtype) is not None
    values: NDArray[Any] = (dataset.asstr() if text else dataset)[()][rows]
    return values


def _note(wrong: list[set[str]], owner: NDArray[np.int64], made: Arrays, released: Arrays) -> None:
    """Note for every row the columns that differ in any bit."""
    for name, values in made.items():
        there = released[name]
        for row in np.unique(owner[~same_bits(values, there)]).tolist():
            wrong[row].add(name)


def same_bits(values: NDArray[Any], there: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of two arrays are the same in every bit."""
    same = values == there if values.dtype.kind == "O" else _bits(values) == _bits(there.astype(values.dtype, copy=False))
    return np.all(np.asarray(same).reshape(len(values), -1), axis=1)


def _bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8) if len(values) else np.zeros((0, 1), np.uint8)
