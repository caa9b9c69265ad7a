"""The datasheet: every question answered from the data, by a person, or not applicable with a reason; and README.txt of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scalable.release.fill import fillings
from scalable.release.recipe import COMPUTED, QUESTIONS
from scalable.schema import State

NOT_APPLICABLE = "not applicable:"


def datasheet(manifest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return question, kind of the answer (computed, declared, not_applicable) and answer, by name."""
    computed = _computed(manifest)
    found = {}
    for name, question in QUESTIONS.items():
        text = computed[name] if name in COMPUTED else manifest["recipe"]["datasheet"][name].strip()
        kind = "computed" if name in COMPUTED else "declared"
        if text.lower().startswith(NOT_APPLICABLE):
            kind = "not_applicable"
        found[name] = {"question": question, "kind": kind, "answer": text}
    return found


def _computed(m: Mapping[str, Any]) -> dict[str, str]:
    books, motivation = m["accounting"], m["motivation"]
    split = m["split"]
    labels, sky = m["recipe"]["labels"], m["coverage"]["rows"]
    limits = m["limits"] | {f"depth of {name}": value for name, value in m["depth"].items()}
    parts = ", ".join(f"{name} {count}" for name, count in split["rows"].items())
    return {
        "motivation_purpose": motivation["text"],
        "motivation_goal": f"{motivation['goal']} It requires "
        + "; ".join(f"{name}: {text}" for name, text in motivation["requirements"].items()),
        "composition_instances": f"{books['released']} {m['recipe']['rows']} with {len(m['columns'])} columns each"
        f"{_images(m)}{_simulated(m)}",
        "composition_missing": "; ".join(filter(None, [_missing(m["sketches"]), _completeness(m["completeness"]), _loss(m)])),
        "composition_errors": _errors(m),
        "composition_labels": "; ".join(
            f"{x['column']}: from {x['source']}; quality: {x['quality']}{_bias(m, x['column'])}" for x in labels)
        or "not applicable: no column is declared as a label",
        "composition_splits": f"{parts}; dealt out by {split['how']}. Rows of test and validation "
        f"with a row of another split within {split['guard_arcsec']} arcsec: {split['leaks']} (of a random split: "
        f"{split['random_leaks']}). Folds: {split['folds']} "
        f"with {split['fold_rows']} rows{_spread(split)}",
        "composition_footprint": f"{sky['square_degrees']:.6g} square degrees of pixels of order {sky['order']}: {sky['moc']}; "
        "nothing is known of the sky outside" + _modalities(m["coverage"]),
        "composition_limits": "; ".join(f"{key}: {value}" for key, value in limits.items()) or "the headers say nothing",
        "collection_source": "; ".join(f"{key}: {value}" for key, value in m["query"].items() if value not in ("", None)),
        "collection_selection": _selection(m),
        "preprocessing_steps": _steps(m),
        "preprocessing_raw": f"{m['sources']['files']} source files are named with digests, "
        f"{m['sources']['headers']} raw headers kept",
        "distribution_license": m["license"],
        "maintenance_versions": f"{m['version']}; "
        + (f"parent {m['parent']['version']}: {m['parent']['added']} rows added, {m['parent']['removed']} removed, "
           f"{m['parent']['changed']} changed" if m["parent"] else "the first")
        + ". PATCH: same rows; MINOR: rows added; MAJOR: anything else",
    }  # fmt: skip


def _missing(sketches: Mapping[str, Any]) -> str:
    lines = []
    for name, sketch in sketches.items():
        counts = {State(code).name.lower(): count for code, count in enumerate(sketch["states"]) if code and count}
        if counts:
            lines.append(f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    return "; ".join(lines) or "none"


def _images(m: Mapping[str, Any]) -> str:
    """Say what the images are, and how far their pixels are those of the source."""
    if not m["images"]:
        return ""
    images, about = m["images"], json.loads(m["images"]["attributes"]["cube"])
    sizes, total = images["sizes"], max(1, sum(images["pixels"]))
    own = about["resampling"] == "native" and about["combine"] is None
    states = json.loads(images["attributes"]["states"])
    shares = ", ".join(f"{count / total:.1%} {states[str(code)]}" for code, count in enumerate(images["pixels"]) if count)
    return (
        f"; images of {images['objects_with_image']} of them in {sizes['band']} bands, {sizes['y']} x {sizes['x']} pixels, "
        f"resampling: {about['resampling']}, combined by: {about['combine'] or 'nothing, every exposure is kept'}"
        f"{'; every pixel is the very one of the source' if own else ''}; pixels: {shares}"
    )


def _simulated(m: Mapping[str, Any]) -> str:
    """Say what was drawn, from what, and where it is."""
    drawn = m.get("simulated")
    if not drawn:
        return ""
    return (
        f"; beside them {drawn['rows']} simulated rows of origin 2, in {drawn['split']} alone and in no fold: "
        f"{', '.join(drawn['columns'])} drawn from the mixture code/model.h5 (sha256 {drawn['model']}) "
        f"with seed {drawn['seed']}, because {drawn['reason']}"
    )


def _completeness(complete: Mapping[str, Any]) -> str:
    """Say where less than nine in ten of the rows with a magnitude were released."""
    lines = []
    for name, bins in complete.items():
        few = [low for low, before, after in bins if after < 0.9 * before]
        n, kept = (sum(row[at] for row in bins) for at in (1, 2))
        where = f", fewer than 9 in 10 in the bins from {few[0]:g} to {few[-1]:g} mag" if few else ""
        lines.append(f"{name}: {kept} of {n} with a value released{where}")
    return "; ".join(lines)


def _loss(m: Mapping[str, Any]) -> str:
    """Say what the source has and the release has not."""
    info = m["information"]
    columns, bands, errors = info["columns"], info["bands"], info["errors"].values()
    worst = max((error["max"] for error in errors), default=0.0)
    lost = f", left out: {', '.join(columns['left_out'])}" if columns["left_out"] else ""
    return (
        f"{columns['released']} of {columns['in']} columns of the source released as they are{lost}; "
        f"{bands['released']} of {bands['in']} bands; {len(info['narrowed'])} columns narrowed; "
        f"greatest difference of a value carried over: {worst:g}; all header cards kept"
    )


def _bias(m: Mapping[str, Any], label: str) -> str:
    """Say how the density of labelled rows against that of all varies, along one column at a time."""
    found = {key.split(":")[1]: bias for key, bias in m["label_bias"].items() if key.startswith(f"{label}:")}
    texts = [f"{name} {b['least']:.3g} to {b['greatest']:.3g}" for name, b in found.items() if b["least"] is not None]
    return f"; density of labelled rows against all released along {', '.join(texts)}" if texts else ""


def _modalities(coverage: Mapping[str, Any]) -> str:
    return "".join(f"; {name}: {sky['square_degrees']:.6g} square degrees" for name, sky in coverage.items() if name != "rows")


def _errors(m: Mapping[str, Any]) -> str:
    robust = m["outliers"]
    erroneous = [f"{r['rule']}: {r['dropped']} dropped" for r in m["selection"] if r["stage"] == "erroneous"]
    far = m["flags"]["outlier"]["rows"]
    text = "distances were not asked for"
    if robust["columns"]:
        columns = ", ".join(robust["columns"])
        text = f"{far} rows further than {robust['threshold']} half widths in {columns} are flagged and weighted down"
    bare = [c["name"] for c in m["columns"] if c["role"] in ("flux", "mag") and not c["error"]]
    without = (
        f"without a column of errors: {', '.join(bare)}" if bare else "every flux and magnitude names the column of its errors"
    )
    filled = [filling.text() for filling in fillings(m)]
    return "; ".join([*erroneous, text, without, *filled])


def _selection(m: Mapping[str, Any]) -> str:
    books = m["accounting"]
    steps = [f"{r['rule']} ({r['where']}): kept {r['kept']}, dropped {r['dropped']}" for r in m["selection"]]
    return "; ".join([f"{books['in']} rows in", *steps, f"{books['released']} released, {books['rejected']} listed as rejected"])


def _steps(m: Mapping[str, Any]) -> str:
    """Say what was done to the rows, with which parameters and why."""
    reasons = {
        "join_bands": (m["recipe"]["join"] or {}).get("reason"),
        "variability": (m["recipe"]["statistics"] or {}).get("reason"),
    }
    parts = []
    for step in m["steps"]:
        rest = {key: value for key, value in step.items() if key != "step"}
        inner = rest if step["step"] == "together" else {step["step"]: rest}
        for name, parameters in inner.items():
            why = f" ({reasons[name]})" if reasons.get(name) else ""
            parts.append(f"{name} {json.dumps(parameters, sort_keys=True)}{why}")
    return "; ".join(parts) or "none but those of ingest"


def _spread(split: Mapping[str, Any]) -> str:
    return "".join(f"; {name}: mean of the folds from {low:.6g} to {high:.6g}" for name, (low, high) in split["spread"].items())


def readme(manifest: Mapping[str, Any]) -> str:
    """Return the text that a person reads first."""
    epoch = manifest["bytes_per_row"] * sum(shard["rows"] for shard in manifest["shards"]) / 1e6
    lines = [
        f"{manifest['title']}, version {manifest['version']}",
        "",
        f"License: {manifest['license']}",
        f"Format {manifest['format_version']}, written by scalable-sky {manifest['written_by']}.",
        f"Made with {', '.join(f'{name} {version}' for name, version in manifest['libraries'].items())}.",
        f"Opened in its tests with {', '.join(manifest['read_by'])}.",
        f"{manifest['bytes_per_row']:.1f} bytes per row on disk; an epoch reads {epoch:.1f} MB; "
        "Release.loader_rate() measures rows a second and seconds an epoch on the machine at hand.",
        "",
        "How to open",
        "  scalable verify FOLDER --level 2          that it is whole",
        "  scalable.open_release(FOLDER)             NumPy, xarray, pandas, PyTorch, TensorFlow",
        "  h5py.File('data/Norder=K/Npix=N.h5')      row-aligned datasets; attributes of each say unit, meaning and why",
        "  pyarrow.parquet.read_table('index.parquet')",
        "",
        "Why a cell holds no value: NAME_state is "
        + ", ".join(f"{state.value} {state.name.lower()}" for state in State) + ". See code/format.md.",
        "",
        "Datasheet",
    ]  # fmt: skip
    for entry in datasheet(manifest).values():
        lines += [f"  {entry['question']}", f"    [{entry['kind']}] {entry['answer']}"]
    return "\n".join(lines) + "\n"


FORMAT_TEXT = """# The format of this release

- `release.json`: everything that the release says of itself. `index.parquet`: one entry a row, with shard, row, split, labels and
  digest.
- `data/Norder=K/Npix=N.h5`: one HEALPix pixel (NESTED). Every dataset of the root has one entry a row. `X_state` says of each
  cell of `X`: 0 measured, 1 non-detection, 2 not observed, 3 sentinel in the source, 4 rejected, 5 imputed; where it is neither
  0 nor 5, `X` holds its `null_value`. `split`: 0 train, 1 validation, 2 test, 3 guard band. Bits of `flags`: see the attribute of
  the root.
- `X_state_in_source`, of a column that was imputed: its states before; where the two differ, the value is none of the source.
- `image` and `image_…`, where there are images: cutouts along (object, band, epoch where exposures are single, y, x) and what
  belongs to them; `image_state` says of each pixel what `states` in `provenance.h5`, group `cube`, names. Attributes behind
  `cube.` are those of the Zarr cube, word for word. World coordinates: the raw header of the exposure `image_grid`, moved by
  `image_y0`, `image_x0`.
- `data/Simulated/Part=N.h5`, where simulated rows joined: the same datasets. `origin` is 2, `ra` and `dec` are NaN, `source_id`
  and `fold` are -1, `source_row` is the number of the row in the sample, no state is 0. Their mixture lies in `code/model.h5`.
- `…lightcurves.h5`: detections, object after object; those of row i are `lc_offset[i]` to `lc_offset[i] + lc_count[i]`.
- `data/sources/ID.h5`, where whole files are released: a group for each HDU with its `header`, `data`, `heap` and `pad`.
- `provenance.h5`: `sources` (path below the survey's root, SHA-256, size); `headers` (`blocks` holds the raw 2,880-byte blocks of
  every HDU, one after another, `length` bytes each: keyword X of a FITS header is in there, byte for byte); `keywords` (one text
  a source of those that differ between sources); `rejected` (rows that are not released, with rule and value); `sketches`.
- A FITS column NAME is the dataset NAME, in its own precision; TUNIT is the attribute `unit` (VOUnit, `1` for a pure number) and,
  where the survey overrules the header, `source_unit`; TUCD is `ucd`.
- A digest of a row is SHA-256 over the names, types and shapes of all its datasets, then its cells, big end first; texts and
  arrays stand for themselves by their SHA-256.
"""
