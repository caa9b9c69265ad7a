"""What the manifest says of a release, computed from its rows: books, columns, distributions, footprint, limits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable import __version__
from scalable.catalog.collection import Collection
from scalable.release.assemble import BEFORE, ORIGINS, OWN_BITS, Robust
from scalable.release.coverage import completeness, coverage, depths
from scalable.release.images import describe_images, image_columns
from scalable.release.lock import libraries
from scalable.release.loss import information
from scalable.release.parts import Plan, as_json, fill_text, light_curve_path, shard_path
from scalable.release.recipe import Recipe
from scalable.release.rows import Feature
from scalable.release.split import Part, leaks, random_leaks
from scalable.schema import State
from scalable.survey.description import Survey
from scalable.survey.products import Motivation, Query

READ_BY = ("h5py", "xarray", "pandas", "mlcroissant", "datasets", "torch", "tensorflow")
"""Readers that the tests of this version open a release with."""

_KEYS: dict[str, tuple[str, str, str]] = {
    "object_id": ("1", "meta.id;meta.main", "Number of the object"),
    "ra": ("deg", "pos.eq.ra;meta.main", "Right ascension of the object, ICRS"),
    "dec": ("deg", "pos.eq.dec;meta.main", "Declination of the object, ICRS"),
    "split": ("1", "meta.code", "0 train, 1 validation, 2 test, 3 guard band"),
    "fold": ("1", "meta.code", "Fold for cross-validation, from 0"),
    "weight": ("1", "stat.weight", "Weight in training: 1, or less for an outlier"),
    "flags": ("1", "meta.code.qual", "Bits that the root attribute flags names"),
    "origin": ("1", "meta.code", "0 measured, 1 holds imputed values, 2 simulated"),
    "outlier_distance": ("1", "stat.fit.residual", "Largest distance from the middle of a column, in half widths"),
    "outlier_class": ("1", "meta.code.class", "Which column an outlier is far in, from 1; 0 for the others"),
    "source_id": ("1", "obs.image", "Source file, of an object that of its first detection"),
    "source_row": ("1", "meta.record", "Row in that file, from 0"),
    "lc_offset": ("1", "meta.record", "First detection of the object in the file of light curves"),
    "lc_count": ("1", "meta.number", "Detections of the object"),
}  # fmt: skip


def describe(
    collection: Collection,
    survey: Survey,
    recipe: Recipe,
    motives: tuple[Motivation, Query],
    plan: Plan,
    index: pa.Table,
    records: Sequence[Mapping[str, Any]],
    digested: Sequence[Mapping[str, Any]],
    robust: Robust,
) -> dict[str, Any]:
    """Return all of the manifest that follows from rows, survey and recipe."""
    motivation, query = motives
    flags = {name: {"bit": bit, "meaning": text} for bit, (name, text) in enumerate(OWN_BITS.items())}
    flags |= {f.name: {"bit": len(OWN_BITS) + i, "meaning": f.description, "where": f.where} for i, f in enumerate(recipe.flags)}
    counts = {bit: sum(one["flags"].get(str(bit), 0) for one in digested) for bit in range(31)}
    far = recipe.outliers.far
    digests = {one["part"]: one["digest"] for one in digested}
    complete = completeness([record["magnitudes"] for record in records])
    steps = {"steps": [[step.name, step.parameters()] for step in plan.chain.steps], "recipe": recipe.model_dump(mode="json")}
    return {
        "format_version": 1,
        "name": recipe.release,
        "title": recipe.title,
        "date": collection.manifest["date"][:10],
        "license": survey.license,
        "written_by": __version__,
        "read_by": list(READ_BY),
        "libraries": libraries(),
        "survey": survey.name,
        "bands": list(collection.bands),
        "motivation": motivation.model_dump(mode="json"),
        "query": query.model_dump(mode="json"),
        "quality": dict(survey.quality),
        "recipe": recipe.model_dump(mode="json"),
        "steps_digest": hashlib.sha256(as_json(steps).encode()).hexdigest(),
        "index": {f.name: str(f.type) for f in index.schema if f.name != "row_digest"},
        "shards": [_shard(piece, plan, digests) for record in records for piece in record["pieces"]],
        "selection": selection(recipe, plan, records),
        "accounting": _accounting(collection, recipe, records),
        "flags": {name: {**entry, "rows": counts[int(str(entry["bit"]))]} for name, entry in flags.items()},
        "origins": {text: sum(one["origin"][int(code)] for one in digested) for code, text in ORIGINS.items()},
        "outliers": {"columns": list(robust.columns), "middle": list(robust.middle), "half_width": list(robust.half_width),
                     "fitted_by": robust.fitted_by, "threshold": far.threshold if far else None},
        "imputed": [filling.to_json() for filling in robust.fills],
        "sketches": sketches_of(digested),
        "split": split_facts(recipe, index),
        "coverage": coverage([one["cells"] for one in digested]),
        "completeness": complete,
        "depth": depths(complete),
        "images": _images(plan, digested),
        "information": information(collection, plan.released, plan.light_curves, digested),
    }  # fmt: skip


def _images(plan: Plan, digested: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what is known of the images: the cube, objects with and without one, pixels by state."""
    if plan.images is None:
        return None
    rows, shown = sum(one["rows"] for one in digested), sum(one["images"]["shown"] for one in digested)
    pixels = np.sum([one["images"]["pixels"] for one in digested], axis=0).tolist()
    return describe_images(plan.images) | {"objects_with_image": shown, "objects_without_image": rows - shown, "pixels": pixels}


def _shard(piece: Mapping[str, Any], plan: Plan, digests: Mapping[str, str]) -> dict[str, Any]:
    part = piece["part"]
    found = {"path": shard_path(part), "rows": piece["rows"], "digest": digests[part]}
    return found | ({"light_curves": light_curve_path(part), "detections": piece["detections"]} if plan.of_objects else {})


def selection(recipe: Recipe, plan: Plan, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every rule in order with the rows that it kept and dropped, the reason, and the requirement that it serves."""
    reasons = {p.name: (p.reason, p.serves) for p in recipe.select}
    reasons |= {f"{e.column} in bounds": (e.reason, "") for e in recipe.outliers.erroneous}
    left = sum(record["rows_in"] for record in records)
    found = []
    for rule in plan.cuts.rules:
        dropped = sum(record["dropped"].get(rule.name, 0) for record in records)
        left -= dropped
        reason, serves = reasons[rule.name]
        found.append({"rule": rule.name, "stage": rule.stage, "where": rule.condition.text, "reason": reason, "serves": serves,
                      "kept": left, "dropped": dropped})  # fmt: skip
    return found


def _accounting(collection: Collection, recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return rows in, released and rejected: of detections from the files on, of objects from the store on."""
    books = collection.accounting
    rows_in, released = (sum(record[key] for record in records) for key in ("rows_in", "rows"))
    found = {"read": books["read"], "stored": books["stored"], "rejected_by_ingest": books["rejected"]}
    dropped = rows_in - released
    if recipe.rows == "detections":
        return found | {"in": books["read"], "released": released, "rejected": books["rejected"] + dropped}
    inside, kept = (sum(record[key] for record in records) for key in ("detections_in", "detections"))
    more = {"detections_in": inside, "detections_released": kept, "detections_of_rejected_objects": inside - kept}
    return found | {"in": books["objects"], "released": released, "rejected": dropped} | more


def column_entries(plan: Plan) -> list[dict[str, Any]]:
    """Return what the manifest says of every dataset of a shard, and of the light curves beside it."""
    more = image_columns(plan.images, plan.recipe) if plan.images is not None else []
    return [*entries(plan.released, plan.light_curves, plan.recipe), *more]


def entries(released: Sequence[Feature], light_curves: Sequence[Feature], recipe: Recipe) -> list[dict[str, Any]]:
    """Return an entry for each column of the rows and of the light curves."""
    imputed = [fill.column for fill in recipe.impute]
    return [_entry(feature, "rows", imputed) for feature in released] + [
        _entry(feature, "light_curves") for feature in light_curves
    ]


def _entry(feature: Feature, where: str, imputed: Sequence[str] = ()) -> dict[str, Any]:
    column, meaning = feature.column, feature.meaning
    return {
        "name": column.name,
        "in": where,
        "dtype": str(column.dtype),
        "role": column.role,
        "unit": column.unit,
        "source_unit": column.source_unit,
        "ucd": column.ucd,
        "description": column.description,
        "reason": meaning.reason,
        "serves": meaning.serves,
        "obtained": meaning.obtained,
        "error": column.error,
        "states": feature.nullable,
        "imputed": where == "rows" and feature.source in imputed,
        "null_value": fill_text(feature),
    }


def dataset_attributes(plan: Plan) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Return the attributes of the datasets of a shard, and of those of its light curves."""
    listed = column_entries(plan)
    return attributes_of(listed, "rows") | attributes_of(listed, "images"), attributes_of(listed, "light_curves")


def attributes_of(entries: Sequence[Mapping[str, Any]], where: str) -> dict[str, dict[str, str]]:
    """Return the attributes of every dataset that a file holds, from what the manifest says of columns.

    Those that a cube gave its variables are kept word for word behind ``cube.``.
    """
    found = {
        name: {"unit": unit, "ucd": ucd, "description": text, "reason": "key of the release"}
        for name, (unit, ucd, text) in _KEYS.items()
    }
    for entry in entries:
        if entry["in"] == where:
            shown = ("unit", "source_unit", "ucd", "description", "reason", "serves", "obtained", "error", "null_value")
            found[entry["name"]] = {key: entry[key] for key in shown if entry[key]}
            if where == "images":
                found[entry["name"]] |= {"dims": " ".join(entry["dims"])} | {f"cube.{k}": v for k, v in entry["cube"].items()}
            if entry["states"]:
                text = f"Why {entry['name']} holds no value: " + ", ".join(f"{s.value} {s.name.lower()}" for s in State)
                found[f"{entry['name']}_state"] = {
                    "unit": "1",
                    "ucd": "meta.code",
                    "description": text,
                    "reason": "key of the release",
                }
            if entry.get("imputed"):
                text = f"State of {entry['name']} before it was imputed: where the two differ, its value is none of the source"
                before = {"unit": "1", "ucd": "meta.code", "description": text, "reason": "key of the release"}
                found[f"{entry['name']}{BEFORE}"] = before
    return found


def sketches_of(digested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts by state, least, greatest, mean and scatter of every column, merged in the order of the parts."""
    found: dict[str, Any] = {}
    for name in digested[0]["columns"]:
        pieces = [one["columns"][name] for one in digested]
        sketch: dict[str, Any] = {"states": np.sum([p["states"] for p in pieces], axis=0).tolist()}
        good = [p for p in pieces if p.get("n")]
        if good:
            n, total, squares = (sum(p[key] for p in good) for key in ("n", "sum", "squares"))
            mean = total / n
            sketch |= {"n": n, "min": min(p["min"] for p in good), "max": max(p["max"] for p in good), "mean": mean,
                       "std": float(np.sqrt(max(0.0, squares / n - mean * mean)))}  # fmt: skip
        found[name] = sketch
    return found


def split_facts(recipe: Recipe, index: pa.Table) -> dict[str, Any]:
    """Return rows by split and fold, leaks, the same of a random split, and how labels differ between the folds."""
    split = recipe.split
    ids, ra, dec, parts, folds = (index[name].to_numpy() for name in ("object_id", "ra", "dec", "split", "fold"))
    how = "a hash of the object" if split.random else f"a hash of HEALPix pixels of order {split.order}"
    spread = {}
    for label in recipe.labels:
        values = pc.cast(index[label.column], pa.float64()).to_numpy(zero_copy_only=False)
        means = [float(np.mean(values[(folds == k) & np.isfinite(values)])) for k in np.unique(folds).tolist()
                 if np.any((folds == k) & np.isfinite(values))]  # fmt: skip
        spread[label.column] = [min(means), max(means)] if means else [0.0, 0.0]
    return {
        "how": f"{how} and the salt {split.salt!r}",
        "guard_arcsec": split.guard_arcsec,
        "rows": {part.name.lower(): int(np.count_nonzero(parts == part)) for part in Part},
        "leaks": leaks(parts, ra, dec, radius_arcsec=split.guard_arcsec) if _distinct(ids) else _object_leaks(split, index),
        "random_leaks": random_leaks(split, ids, ra, dec),
        "folds": split.folds,
        "fold_rows": np.bincount(folds, minlength=split.folds).tolist(),
        "spread": spread,
    }


def _distinct(ids: NDArray[np.int64]) -> bool:
    return len(np.unique(ids)) == len(ids)


def _object_leaks(split: Any, index: pa.Table) -> int:
    """Return the leaks among detections: rows of one object stand at one position, and are dealt out together."""
    return leaks(index["split"].to_numpy(), index["ra"].to_numpy(), index["dec"].to_numpy(), radius_arcsec=split.guard_arcsec)
