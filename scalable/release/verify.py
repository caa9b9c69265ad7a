"""`verify_release`: checksums, then all that a release says of itself, then sampled rows from the sources, then every row."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from scalable.catalog.ingest import ingest
from scalable.cluster import run_tasks
from scalable.cube.write import write_cube
from scalable.errors import ScalableError
from scalable.io.hdf5_probe import why_deadly
from scalable.io.hdf5_write import text_attributes
from scalable.io.parquet import read_leaf
from scalable.io.remote import local_place
from scalable.release import manifest as names
from scalable.release.assemble import BEFORE, Arrays
from scalable.release.drawn import are_drawn
from scalable.release.images import digest_images, load_plugin, read_blocks, step_of
from scalable.release.manifest import file_digest, files_below, own_dataset, read_manifest, read_sums
from scalable.release.parts import digest_rows
from scalable.release.provenance import SOURCE_COLUMNS, headers_digest, sources_digest
from scalable.release.read import open_release
from scalable.release.recipe import parse_recipe
from scalable.release.recut import check_images
from scalable.release.resample import check_headers, check_samples, check_simulated, check_sources, same_bits
from scalable.release.split import Part
from scalable.release.summary import attributes_of, split_facts
from scalable.release.version import compare_rows, content_digest
from scalable.release.write import documents, write_release
from scalable.schema import State
from scalable.survey.read import open_survey

LEVELS = {1: "checksums", 2: "what it says of itself", 3: "sampled rows from the sources", 4: "full rebuild"}
_SHOWN, _CUBE_OBJECTS = 20, 256
_OTHER_BYTES = "its bytes are not those that SHA256SUMS lists"
_OWN_ENTRIES = {"version", "parent", "date", "written_by", "libraries", "content"}
"""What a manifest says of its own making, and its digest of all rows, whose differences are listed row by row."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, and where."""

    level: int
    where: str
    problem: str

    def __str__(self) -> str:
        """Return a line for people."""
        return f"level {self.level}: {self.where}: {self.problem}"


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was found."""

    path: Path
    checked: tuple[tuple[int, str, int], ...]
    """Level, name of the check, and how many things it looked at."""
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0, or 4: a check failed."""
        return 0 if self.passed else 4

    def __str__(self) -> str:
        """Return the table of checks, and under it what was found."""
        failed = Counter((f.level, f.where.split(":")[0]) for f in self.findings)
        lines = [f"{level}  {name:<38} {count:>10}" for level, name, count in self.checked]
        lines += [f"FAILED {finding}" for finding in self.findings]
        return "\n".join([*lines, "passed" if self.passed else f"{len(self.findings)} findings in {len(failed)} places"])


def verify_release(path: str | Path, *, level: int = 2, sources: str | Path | None = None, samples: int = 100) -> Verification:
    """Check a release up to a level; computes, on the scheduler in use.

    Parameters
    ----------
    path : str or Path
        The release.
    level : int
        1 checksums of all files; 2 schema, states, books, digests of all rows, version, documents; 3 sampled rows and all headers
        against the bytes of the sources; 4 everything made again from the sources, and all digests compared.
    sources : str or Path, optional
        Folder that the paths of the sources are relative to, for levels 3 and 4.
    samples : int
        Rows that level 3 samples; which ones follows from the release.

    Returns
    -------
    Verification
        With a finding for each thing that is not as it should be.
    """
    folder = local_place(path)
    if level not in LEVELS:
        raise ValueError(f"level: {level} is none; choose 1 to 4")
    if level > 2 and sources is None:
        raise ValueError("levels 3 and 4 read the sources: say with sources which folder holds them")
    found = _Findings()
    # A check that stumbles over what is damaged says so, and the others go on.
    found.check(1, "checksums", lambda: _checksums(folder, found))
    deadly = _deadly(folder, found) if level > 1 else set()
    if level > 1:
        found.check(2, "manifest and documents", lambda: _documents(folder, found))
        found.check(2, "rows: schema, states, digests", lambda: _shards(folder, found, deadly))
        found.check(2, "books, version and splits", lambda: _books(folder, found))
        if names.PROVENANCE not in deadly:
            found.check(2, "provenance", lambda: _provenance(folder, found))
    if deadly:
        return Verification(folder, tuple(found.checked), tuple(found.findings))
    root = Path(sources) if sources is not None else Path()
    if level > 2:
        survey = found.check(3, "survey", lambda: [_survey(folder, root)])
        if survey:
            found.check(3, "sources", lambda: found.take(3, check_sources(folder, survey[0])))
            found.check(3, "headers", lambda: found.take(3, check_headers(folder, survey[0])))
            found.check(3, "sampled rows", lambda: found.take(3, check_samples(folder, survey[0], samples)))
            if read_manifest(folder).get("simulated"):
                found.check(3, "simulated rows", lambda: found.take(3, check_simulated(folder, survey[0])))
            if read_manifest(folder).get("images"):
                found.check(3, "sampled images", lambda: found.take(3, check_images(folder, survey[0], samples)))
    if level > 3:
        found.check(4, "full rebuild", lambda: _rebuild(folder, root, found))
    return Verification(folder, tuple(found.checked), tuple(found.findings))


class _Findings:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.checked: list[tuple[int, str, int]] = []

    def add(self, level: int, where: str, problem: str) -> None:
        self.findings.append(Finding(level, where, problem))

    def check(self, level: int, name: str, look: Callable[[], Any]) -> Any:
        """Run one check; ``look`` returns how many things it looked at, or what it found out."""
        try:
            seen = look()
        except (ScalableError, OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError, pa.ArrowException) as error:
            self.add(level, name, f"cannot be checked: {error}")
            seen = 0
        self.checked.append((level, name, seen if isinstance(seen, int) else len(seen)))
        return seen

    def take(self, level: int, found: Iterator[tuple[str, str]]) -> int:
        """Add findings as (where, problem); one without a problem counts as looked at."""
        count = 0
        for where, problem in found:
            count += 1
            if problem:
                self.add(level, where, problem)
        return count


def _checksums(folder: Path, found: _Findings) -> int:
    listed, present = read_sums(folder), list(files_below(folder))
    for name in sorted(set(listed) - set(present)):
        found.add(1, name, "is listed in SHA256SUMS and not there")
    for name in sorted(set(present) - set(listed)):
        found.add(1, name, "is there and not listed in SHA256SUMS")
    both = [name for name in present if name in listed]
    for name, digest in zip(both, run_tasks(_digest, both, str(folder)), strict=True):
        if digest != listed[name]:
            found.add(1, name, _OTHER_BYTES)
    return len(both)


def _deadly(folder: Path, found: _Findings) -> set[str]:
    """Note the damaged files that crash who reads them, and return their names: nothing may open them."""
    damaged = [one.where for one in found.findings if one.problem == _OTHER_BYTES and one.where.endswith(".h5")]
    reasons = {name: why_deadly(folder / name) for name in damaged}
    for name, reason in reasons.items():
        if reason:
            found.add(2, name, f"cannot be read: {reason}; fetch it again")
    return {name for name, reason in reasons.items() if reason}


def _digest(name: str, folder: str) -> str:
    return file_digest(Path(folder) / name)


def _documents(folder: Path, found: _Findings) -> int:
    manifest = read_manifest(folder)
    made = documents(manifest, file_digest(folder / names.INDEX))
    for name, text in made.items():
        there = (folder / name).read_text(encoding="utf-8") if (folder / name).exists() else ""
        if there != text:
            found.add(2, name, _difference(there, text))
    for column in manifest["columns"]:
        for key in ("unit", "description", "ucd", "reason", "obtained"):
            if not column[key]:
                found.add(2, f"{names.MANIFEST}: {column['name']}", f"has no {key}")
    return len(made) + len(manifest["columns"])


def _difference(there: str, text: str) -> str:
    """Say which entry of a document differs from what the manifest gives."""
    try:
        old, new = json.loads(there), json.loads(text)
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        return f"{', '.join(keys)}: not what the manifest gives"
    except (ValueError, AttributeError, TypeError):
        lines = [n for n, (a, b) in enumerate(zip(there.splitlines(), text.splitlines(), strict=False), 1) if a != b]
        return f"line {lines[0] if lines else 'count'}: not what the manifest gives"


def read_shard(path: Path, skipped: Sequence[str] = ()) -> tuple[Arrays, dict[str, dict[str, str]], dict[str, str]]:
    """Return the datasets of a file of a release, those skipped excepted, their attributes, and those of the root."""
    with h5py.File(path, "r") as file:
        held = {name: own_dataset(file, name) for name in file if name not in skipped}
        arrays = {name: dataset[()] for name, dataset in held.items()}
        texts = {name for name in arrays if h5py.check_string_dtype(file[name].dtype) is not None}
        for name in texts:
            arrays[name] = file[name].asstr()[()]
        attributes = {name: {str(k): str(v) for k, v in file[name].attrs.items()} for name in arrays}
        return arrays, attributes, {str(k): str(v) for k, v in file.attrs.items()}


def _shards(folder: Path, found: _Findings, deadly: set[str]) -> int:
    manifest = read_manifest(folder)
    seen = 0
    shards = [shard for shard in manifest["shards"] if not deadly & {shard["path"], shard.get("light_curves")}]
    for problems, rows in run_tasks(_check_shard, shards, str(folder), manifest):
        seen += rows
        found.take(2, iter(problems))
    listed = {name for shard in manifest["shards"] for name in (shard["path"], shard.get("light_curves")) if name}
    for name in files_below(folder):
        if name.startswith(("data/Norder=", "data/Simulated/")) and name not in listed:
            found.add(2, name, f"is no shard that {names.MANIFEST} lists")
    return seen


def _check_shard(shard: Mapping[str, Any], folder: str, manifest: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Return what is wrong with one shard and the light curves beside it, and how many rows it has."""
    try:
        return _look_into(shard, Path(folder), manifest)
    except (ScalableError, OSError, KeyError, ValueError, RuntimeError) as error:
        return [(shard["path"], f"cannot be read: {error}")], 0


def _look_into(shard: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    path, problems = shard["path"], list[tuple[str, str]]()
    columns = [column for column in manifest["columns"] if column["in"] == "images"]
    rows, attributes, root = read_shard(folder / path, [column["name"] for column in columns])
    problems += _look_at(path, rows, attributes, manifest, "rows", shard["rows"])
    images = None
    if columns:
        load_plugin(manifest)
        with h5py.File(folder / path, "r") as file:
            problems += _look_at_images(path, file, columns, shard["rows"])
            images, _ = digest_images(read_blocks(file, columns, step_of(columns)))
    for key, value in (("version", manifest["version"]), ("license", manifest["license"]), ("title", manifest["title"])):
        if root.get(key) != value:
            problems.append((path, f"attribute {key} of the root is {root.get(key)!r}, the manifest says {value!r}"))
    if json.loads(root["columns"]) != manifest["columns"]:
        problems.append((path, "attribute columns of the root is not what the manifest says"))
    curves: Arrays = {}
    if "light_curves" in shard:
        curves, about, _ = read_shard(folder / shard["light_curves"])
        problems += _look_at(shard["light_curves"], curves, about, manifest, "light_curves", shard["detections"])
        if int(rows["lc_count"].sum()) != shard["detections"]:
            return [*problems, (path, "lc_count does not add up to the detections beside it")], len(rows["object_id"])
        owners = np.repeat(rows["object_id"], rows["lc_count"])
        if not np.array_equal(owners, curves["object_id"]):
            problems.append((shard["light_curves"], "detections are not those of the objects in order"))
    if len({len(values) for values in rows.values()}) > 1:
        return [*problems, (path, "datasets are of different lengths")], 0
    mine = pq.read_table(folder / names.INDEX, filters=[("shard", "=", path)], page_checksum_verification=True, use_threads=False)
    digests = digest_rows(
        order_arrays(rows, manifest, "rows"), order_arrays(curves, manifest, "light_curves") if curves else {}, images
    )
    listed = b"".join(mine["row_digest"].to_pylist())
    if len(listed) != digests.size:
        problems.append((path, f"holds {len(digests)} rows, {names.INDEX} lists {mine.num_rows}"))
    else:
        bad = np.flatnonzero((np.frombuffer(listed, np.uint8).reshape(-1, 32) != digests).any(axis=1))
        problems += [
            (f"{path}: row {row}", f"object {rows['object_id'][row]} is not what {names.INDEX} digests") for row in bad[:_SHOWN]
        ]
    for name in ("object_id", "ra", "dec", "split", "fold", "source_id", "source_row"):
        if len(listed) == digests.size and not same_bits(mine[name].to_numpy(), rows[name]).all():
            problems.append((path, f"{name} is not that of {names.INDEX}"))
    return problems, len(digests)


_LEAD = ("object_id", "ra", "dec", "split", "fold", "weight", "flags", "origin")
_TRAIL = ("outlier_distance", "outlier_class", "source_id", "source_row", "lc_offset", "lc_count")


def order_arrays(arrays: Arrays, manifest: Mapping[str, Any], where: str) -> Arrays:
    """Return datasets in the order of the format: HDF5 lists them by name."""
    middle = []
    for column in manifest["columns"]:
        if column["in"] == where:
            middle += [column["name"], *([f"{column['name']}{BEFORE}"] if column.get("imputed") else [])]
            middle += [f"{column['name']}_state"] if column["states"] else []
    lead, trail = (_LEAD, _TRAIL) if where == "rows" else (("object_id", "source_id", "source_row"), ())
    return {name: arrays[name] for name in (*lead, *middle, *trail) if name in arrays}


def _look_at(
    path: str, arrays: Arrays, attributes: Mapping[str, Mapping[str, str]], manifest: Mapping[str, Any], where: str, rows: int
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the datasets of one file: names, lengths, attributes, states."""
    wanted = attributes_of(manifest["columns"], where)
    expected = order_arrays(dict.fromkeys({*wanted, *arrays}, np.zeros(0)), manifest, where)
    for name in sorted(set(arrays) - set(expected)):
        yield f"{path}: {name}", f"no such dataset in {names.MANIFEST}"
    for column in manifest["columns"]:
        if column["in"] == where and column["name"] not in arrays:
            yield f"{path}: {column['name']}", "is missing"
    for name, values in arrays.items():
        if len(values) != rows:
            yield f"{path}: {name}", f"has {len(values)} rows, {names.MANIFEST} says {rows}"
        for key in sorted({*wanted.get(name, {}), *attributes[name]}):
            there, said = attributes[name].get(key), wanted.get(name, {}).get(key)
            if there != said:
                yield f"{path}: {name}", f"attribute {key} is {there!r}, {names.MANIFEST} says {said!r}"
    for column in manifest["columns"]:
        name = column["name"]
        if column["in"] != where or not column["states"] or name not in arrays or f"{name}_state" not in arrays:
            continue
        values, states = arrays[name], arrays[f"{name}_state"]
        if len(states) and states.max() > max(State):
            yield f"{path}: {name}_state", f"holds {states.max()}, no state that there is"
        if values.dtype.kind == "f" and values.ndim == 1 and len(values) == len(states):
            bad = np.flatnonzero(np.isnan(values) == np.isin(states, (State.MEASURED, State.IMPUTED)))
            for row in bad[:_SHOWN].tolist():
                yield f"{path}: {name}", f"row {row} is {values[row]} and its state is {states[row]}"


def _look_at_images(path: str, file: h5py.File, columns: Sequence[Mapping[str, Any]], rows: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with type, shape and attributes of the datasets of images."""
    wanted = attributes_of(columns, "images")
    for column in columns:
        name = column["name"]
        if name not in file:
            yield f"{path}: {name}", "is missing"
            continue
        own_dataset(file, name)
        if file[name].shape != (rows, *column["shape"]):
            yield f"{path}: {name}", f"has the shape {file[name].shape}, {names.MANIFEST} says {(rows, *column['shape'])}"
        there = text_attributes(file[name])
        for key in sorted({*wanted[name], *there}):
            if there.get(key) != wanted[name].get(key):
                yield (
                    f"{path}: {name}",
                    f"attribute {key} is {there.get(key)!r}, {names.MANIFEST} says {wanted[name].get(key)!r}",
                )


def _books(folder: Path, found: _Findings) -> int:
    manifest, index = read_manifest(folder), read_leaf(folder / names.INDEX)
    books = manifest["accounting"]
    if books["in"] != books["released"] + books["rejected"]:
        found.add(
            2, f"{names.MANIFEST}: accounting", f"{books['in']} in, {books['released']} released, {books['rejected']} rejected"
        )
    drawn = are_drawn(index)
    for what, count, told in (("observed", int((~drawn).sum()), books["released"]),
                              ("simulated", int(drawn.sum()), books.get("simulated", 0))):  # fmt: skip
        if count != told:
            found.add(2, names.INDEX, f"has {count} {what} rows, {told} were released")
    if content_digest(index, manifest["recipe"]["rows"]) != manifest["content"]:
        found.add(2, names.INDEX, "the digest of all rows is not that of the manifest")
    recipe = parse_recipe(manifest["recipe"], names.MANIFEST)
    if recipe.simulate and np.any(index["split"].to_numpy()[drawn] != Part[recipe.simulate.split.upper()]):
        found.add(2, names.INDEX, f"a simulated row is not in the split {recipe.simulate.split}")
    facts = split_facts(recipe, index.filter(pa.array(~drawn)))
    for key, value in facts.items():
        if manifest["split"].get(key) != value:
            found.add(2, f"{names.MANIFEST}: split.{key}", f"is {manifest['split'].get(key)!r}, the rows give {value!r}")
    if not recipe.split.random and facts["leaks"]:
        found.add(2, names.INDEX, f"{facts['leaks']} rows of test or validation are within the guard band of another split")
    parent = manifest["parent"]
    version = tuple(map(int, manifest["version"].split(".")))
    if parent:
        old = tuple(map(int, parent["version"].split(".")))
        major = bool(parent["removed"] or parent["changed"])
        minor = bool(parent["added"])
        wanted = (old[0] + 1, 0, 0) if major else (old[0], old[1] + 1, 0) if minor else (*old[:2], old[2] + 1)
        if version != wanted:
            found.add(
                2,
                f"{names.MANIFEST}: version",
                f"is {manifest['version']}; what changed since {parent['version']} gives {wanted}",
            )
    elif manifest["version"] != "1.0.0":
        found.add(2, f"{names.MANIFEST}: version", f"is {manifest['version']}, a release without a parent is 1.0.0")
    return int(index.num_rows)


def _provenance(folder: Path, found: _Findings) -> int:
    manifest = read_manifest(folder)
    with h5py.File(folder / names.PROVENANCE, "r") as file:
        columns = {name: _list(file["sources"][name]) for name in SOURCE_COLUMNS}
        if sources_digest(columns) != manifest["sources"]["digest"]:
            found.add(2, f"{names.PROVENANCE}: sources", "names, digests or sizes are not those that the manifest digests")
        if len(columns["uri"]) != manifest["sources"]["files"]:
            found.add(
                2,
                f"{names.PROVENANCE}: sources",
                f"lists {len(columns['uri'])} files, the manifest {manifest['sources']['files']}",
            )
        if headers_digest(file["headers"]) != manifest["sources"]["headers_digest"]:
            found.add(2, f"{names.PROVENANCE}: headers", "some byte is not one that the manifest digests")
        stages, rules, values = (file["rejected"][name].asstr()[()] for name in ("stage", "rule", "value"))
        counts = Counter(zip(stages.tolist(), rules.tolist(), strict=True))
        for rule in manifest["selection"]:
            if counts[rule["stage"], rule["rule"]] != rule["dropped"]:
                here = counts[rule["stage"], rule["rule"]]
                found.add(
                    2, f"{names.PROVENANCE}: rejected", f"lists {here} rows of {rule['rule']}, the manifest {rule['dropped']}"
                )
        counted = len(stages) if manifest["recipe"]["rows"] == "detections" else int(np.count_nonzero(stages != "ingest"))
        if counted != manifest["accounting"]["rejected"]:
            found.add(
                2, f"{names.PROVENANCE}: rejected", f"lists {counted} rows, the manifest {manifest['accounting']['rejected']}"
            )
        if np.any(rules == "") or np.any(values == ""):
            found.add(2, f"{names.PROVENANCE}: rejected", "some row has no rule or no value")
        for name in ("query", "steps", "sketches", "outliers", "selection"):
            if json.loads(file[name].asstr()[0]) != manifest[name]:
                found.add(2, f"{names.PROVENANCE}: {name}", "is not what the manifest says")
        return len(columns["uri"]) + len(stages)


def _list(dataset: h5py.Dataset) -> list[Any]:
    values = dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) is not None else dataset[()]
    return list(values.tolist())


def _survey(folder: Path, root: Path) -> Any:
    """Return the survey that the release was made from, with its root where the sources are."""
    before = os.environ.get("SCALABLE_SOURCES")
    os.environ["SCALABLE_SOURCES"] = str(root.resolve())
    try:
        return open_survey(folder / names.CODE / "survey.yaml")
    finally:
        if before is None:
            del os.environ["SCALABLE_SOURCES"]
        else:
            os.environ["SCALABLE_SOURCES"] = before


def _with_images(folder: Path) -> xr.Dataset:
    """Return the cube of a release again, of the objects that it had."""
    cube = open_release(folder).cube()
    cube = cube.isel(object=np.flatnonzero(np.isfinite(cube["ra"].values)))
    return cube.chunk({"object": _CUBE_OBJECTS})


def _known(entry: Any) -> Any:
    """Return an entry of the manifest without what only the cube says that it was made from."""
    return {key: value for key, value in entry.items() if key != "objects_in_cube"} if isinstance(entry, dict) else entry


def _rebuild(folder: Path, root: Path, found: _Findings) -> int:
    """Ingest the sources again, release them again by the same recipe, and compare every row."""
    manifest, index = read_manifest(folder), read_leaf(folder / names.INDEX)
    with tempfile.TemporaryDirectory(prefix="scalable-verify-") as temporary:
        collection = ingest(_survey(folder, root), into=Path(temporary) / "store")
        recipe = parse_recipe(manifest["recipe"], names.MANIFEST)
        cube, model = None, folder / names.MODEL if manifest.get("simulated") else None
        if manifest["images"]:
            found.take(4, check_images(folder, _survey(folder, root), index.num_rows))
            cube = write_cube(_with_images(folder), Path(temporary) / "cube")
        again = write_release(collection, recipe, into=Path(temporary) / "release", cube=cube, model=model, fitted=manifest)
        diff = compare_rows(read_leaf(again / names.INDEX), index, manifest["recipe"]["rows"])
        made = read_manifest(again)
    for key in sorted(set(made) - _OWN_ENTRIES):
        if _known(made[key]) != _known(manifest.get(key)):
            found.add(4, f"{names.MANIFEST}: {key}", "made again from the sources, it says something else")
    for kind, text in (
        ("added", "is not in the release"),
        ("removed", "is in the release alone"),
        ("changed", "comes out otherwise"),
    ):
        table: pa.Table = getattr(diff, kind)
        for row in table.slice(0, _SHOWN).to_pylist():
            where = ", ".join(f"{key} {value}" for key, value in row.items())
            found.add(4, where, f"made again from the sources, it {text}")
        if table.num_rows > _SHOWN:
            found.add(4, kind, f"and {table.num_rows - _SHOWN} more rows")
    return int(index.num_rows)
