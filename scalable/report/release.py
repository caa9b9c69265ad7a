"""What a page shows of a release: its books, where its splits lie on the sky, and what was lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scalable.release.datasheet import datasheet
from scalable.release.read import Release, open_release
from scalable.release.split import Part
from scalable.report.page import Section
from scalable.report.style import LIGHT, WIDTH, Theme, sheet, style_axes

MOST_POINTS, LONGEST = 50_000, 400
"""Points of the map: more would only hide each other; and characters of an answer."""


def release_sections(path: Path) -> list[Section]:
    """Return the sections of a release; reads its manifest and its index."""
    release = open_release(path)
    m = release.manifest
    books, split = m["accounting"], m["split"]
    rules = m["selection"]
    table = (
        pa.table({key: [rule[key] for rule in rules] for key in ("rule", "where", "kept", "dropped", "reason")})
        if rules
        else None
    )
    rows = ", ".join(f"{count:,} {name}" for name, count in split["rows"].items())
    index = release.index
    ra, dec, parts = (index[name].to_numpy() for name in ("ra", "dec", "split"))
    text = (
        f"{m['title']}, version {release.version}: {books['in']:,} {m['recipe']['rows']} in = {books['released']:,} released + "
        f"{books['rejected']:,} rejected. Split by {split['how']}: {rows}. Rows of test and validation with a row of "
        f"another split within {split['guard_arcsec']:g} arcsec: {split['leaks']}; under a random split {split['random_leaks']}."
    )
    return [
        Section(
            "Release",
            text,
            figure=lambda theme: split_map(ra, dec, parts, theme=theme),
            table=table,
            caption="Where the splits lie, the guard band between them in grey; the rules in order, with the rows kept by each.",
            code=_how_to_open(release),
        ),
        _lost(m),
        _datasheet(m),
    ]


def _how_to_open(release: Release) -> str:
    return f"""scalable verify {release.path} --level 2

import scalable
release = scalable.open_release("{release.path}")
frame = release.pandas(split="train")"""


def _lost(m: dict[str, Any]) -> Section:
    """Show the report of what the source has and the release has not."""
    info, books = m["information"], m["accounting"]
    lines = [
        ("rows", books["in"], books["released"], "listed with rule and value in provenance.h5" if books["rejected"] else ""),
        ("columns of the source", info["columns"]["in"], info["columns"]["released"], ", ".join(info["columns"]["left_out"])),
        ("bands", info["bands"]["in"], info["bands"]["released"], ""),
        ("HDUs whose raw header is kept", m["sources"]["headers"], m["sources"]["headers"], ""),
    ]
    if m["images"]:
        shown = m["images"]["objects_with_image"]
        lines.append(("objects with an image", shown + m["images"]["objects_without_image"], shown, ""))
    worst = max((error["max"] for error in info["errors"].values()), default=0.0)
    text = (
        f"What went in and what came out. Columns narrowed to fewer bits: {len(info['narrowed'])}; greatest difference "
        f"of a value that was carried over: {worst:g}. {len(info['derived'])} columns are computed and have none in the source."
    )
    names = ("of", "in", "released", "left out")
    return Section("What the release left out", text, table=pa.table(dict(zip(names, zip(*lines, strict=True), strict=True))))


def _datasheet(m: dict[str, Any]) -> Section:
    """Show every answer of the datasheet, of long ones the beginning."""
    entries = list(datasheet(m).values())
    answers = [
        text if len(text) <= LONGEST else f"{text[:LONGEST]} … (datasheet.json)" for text in (e["answer"] for e in entries)
    ]
    table = pa.table({"question": [e["question"] for e in entries], "by": [e["kind"] for e in entries], "answer": answers})
    return Section(
        "Datasheet", "What is computed is compared with the data by verify; what is declared, people said.", table=table
    )


def split_map(ra: NDArray[np.float64], dec: NDArray[np.float64], parts: NDArray[np.int8], *, theme: Theme = LIGHT) -> Figure:
    """Draw the rows of a release on the sky, coloured by split.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Positions [deg].
    parts : ndarray of int8, shape (n,)
        `Part` of each.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    step = -(-len(ra) // MOST_POINTS)
    around = np.deg2rad(ra)
    middle = np.rad2deg(np.arctan2(np.sin(around).mean(), np.cos(around).mean()))
    x = (ra - middle + 180) % 360 - 180
    figure = sheet(WIDTH, 4.6, theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, f"Right ascension − {middle % 360:.4g} [deg]", "Declination [deg]")
    colours = {Part.TRAIN: theme.accent, Part.VALIDATION: theme.ink, Part.TEST: theme.alert, Part.GUARD: theme.muted}
    for part in (Part.GUARD, Part.TRAIN, Part.VALIDATION, Part.TEST):
        mine = np.flatnonzero(parts == part)[:: max(1, step)]
        label = f"{part.name.lower()}: {np.count_nonzero(parts == part):,}"
        alpha = 0.35 if part == Part.GUARD else 1.0
        axes.scatter(x[mine], dec[mine], 5, colours[part], alpha=alpha, linewidths=0, rasterized=True, label=label)
    axes.invert_xaxis()
    # Equal lengths on the sky look equal, but where that would leave a line.
    axes.set_aspect(1 / max(0.1, np.cos(np.deg2rad(dec.mean()))), adjustable="datalim")
    legend = axes.legend(loc="upper right", fontsize=8, frameon=False, markerscale=2.5)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return figure
