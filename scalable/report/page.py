"""One self-contained HTML page: text, figures in a light and a dark theme, tables, code; no script and no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from scalable.io.atomic import write_text
from scalable.report.style import DARK, LIGHT, Theme

DPI = 110
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NULL = '<span class="null" title="null">–</span>'
MANY_DIGITS = 10_000
"""Counts from here on are written with separators of thousands."""


@dataclass(frozen=True)
class Section:
    """One part of a page: what is set of text, code, figure, table stands below the heading, in this order.

    ``figure`` is called once per theme. Of ``table``, ``max_rows`` rows are shown. ``caption`` stands below figure and table.
    """

    heading: str
    text: str = ""
    figure: Callable[[Theme], Figure] | None = None
    table: pa.Table | None = None
    caption: str = ""
    code: str = ""
    max_rows: int = 50


def write_page(path: Path, *, title: str, subtitle: str, sections: Sequence[Section], summary: Mapping[str, str]) -> None:
    """Write a page as one HTML file, whole or not at all; equal input gives equal bytes.

    Parameters
    ----------
    path : Path
        The file to write.
    title, subtitle : str
        Head of the page.
    sections : sequence of Section
        Parts in their order; the table of contents lists them.
    summary : mapping of str to str
        Terms and values at the top of the page.
    """
    contents = "".join(f'<li><a href="#s{n}">{escape(part.heading)}</a></li>' for n, part in enumerate(sections, 1))
    terms = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in summary.items())
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{escape(title)}</h1>" + (f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else "") + "</header>",
        f'<dl class="summary">{terms}</dl>' if summary else "",
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if sections else "",
        "<main>",
        *(_section(number, part) for number, part in enumerate(sections, 1)),
        "</main>",
        "</body>",
        "</html>",
    ]
    write_text(path, "\n".join(part for part in parts if part) + "\n")


def _section(number: int, section: Section) -> str:
    """Return one section as HTML."""
    parts = [f'<section id="s{number}">', f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph.strip())}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.code:
        parts.append(f'<pre tabindex="0"><code>{escape(section.code)}</code></pre>')
    caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
    if section.figure is not None:
        alternative = f"{section.heading}: {section.caption}" if section.caption else section.heading
        below = caption if section.table is None else ""
        parts.append(f'<figure><div class="plot">{_picture(section.figure, alternative)}</div>{below}</figure>')
    if section.table is not None:
        parts.append(f"<figure>{_table(section.table, section.heading, section.max_rows)}{caption}</figure>")
    return "\n".join([*parts, "</section>"])


def _picture(figure: Callable[[Theme], Figure], alternative: str) -> str:
    """Return a figure, drawn once per theme, as a picture that follows the reader's theme."""
    light, width, height = _png(figure, LIGHT)
    dark, _, _ = _png(figure, DARK)
    return (
        f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="{width}" height="{height}" alt="{escape(alternative)}"></picture>'
    )


def _png(figure: Callable[[Theme], Figure], theme: Theme) -> tuple[str, int, int]:
    """Draw a figure; return it as a data URI with its width and height [pixel]."""
    drawn = figure(theme)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DPI, facecolor=theme.paper, metadata={"Software": None})
    data = buffer.getvalue()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height


def _table(table: pa.Table, name: str, max_rows: int) -> str:
    """Return the first rows of a table as HTML, with a line that says how many more there are."""
    shown = table.slice(0, max_rows)
    numeric = [_is_number(field.type) for field in table.schema]
    head = "".join(_head(field, number) for field, number in zip(table.schema, numeric, strict=True))
    cells = [_cells(field, column) for field, column in zip(table.schema, shown.columns, strict=True)]
    kinds = [' class="n"' if number else "" for number in numeric]
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in zip(*cells, strict=True)
    )
    body = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>"
    more = table.num_rows - shown.num_rows
    cut = f'<p class="cut">{shown.num_rows:,} of {table.num_rows:,} rows shown; {more:,} not shown.</p>' if more else ""
    return f'<div class="table" role="region" aria-label="{escape(name)}" tabindex="0">{body}</div>{cut}'


def _head(field: pa.Field, number: bool) -> str:
    """Return the head of a column: name, unit, and the description on hover."""
    metadata = field.metadata or {}
    unit, description = metadata.get(b"unit", b"").decode(), metadata.get(b"description", b"").decode()
    hover = f' title="{escape(description)}"' if description else ""
    below = f'<span class="unit">[{escape(unit)}]</span>' if unit else ""
    return f'<th scope="col"{" class=n" if number else ""}{hover}>{escape(field.name)}{below}</th>'


def _is_number(kind: pa.DataType) -> bool:
    """Say whether a column holds numbers, which stand on the right."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _cells(field: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """Return the cells of a column as HTML; the numbers of one column have the same decimals."""
    write: Callable[[Any], str] = str
    if pa.types.is_floating(field.type):
        write = _float_format(column, 9 if field.type == pa.float64() else 6)
    elif pa.types.is_integer(field.type) and not _is_identifier(field):
        write = _integer
    return [NULL if value is None else escape(write(value)) for value in column.to_pylist()]


def _is_identifier(field: pa.Field) -> bool:
    """Say whether an integer names something instead of counting it."""
    ucd = (field.metadata or {}).get(b"ucd", b"")
    return ucd.startswith((b"meta.id", b"pos.healpix")) or field.name.lower().endswith(("id", "healpix_29"))


def _integer(value: int) -> str:
    """Write a count, a long one with separators of thousands."""
    return f"{value:,}" if abs(value) >= MANY_DIGITS else str(value)


def _float_format(column: pa.ChunkedArray, digits: int) -> Callable[[float], str]:
    """Return how to write a column of floats: the fewest common decimals that keep ``digits`` digits, at most six.

    Columns of very large or very small numbers are written with exponents.
    """
    sizes = [abs(value) for value in pc.drop_null(column).to_pylist() if math.isfinite(value) and value]
    largest, smallest = max(sizes, default=1.0), min(sizes, default=1.0)
    if largest >= 1e9 or smallest < 1e-4:
        return lambda value: f"{value:.{min(digits, 6)}g}"
    most = min(6, max(0, digits - 1 - math.floor(math.log10(largest))))
    written = [f"{size:.{most}f}" for size in sizes]
    decimals = max((len(text.rstrip("0").partition(".")[2]) for text in written), default=0) if most else 0
    return lambda value: f"{value:.{decimals}f}" if math.isfinite(value) else str(value)


def _style() -> str:
    """Return the style sheet; its colours are those of the figures' themes."""
    return (
        f":root {{ {_colours(LIGHT)} --tint: #f5f7f9; color-scheme: light dark; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} --tint: #1d2227; }} }}\n" + LAYOUT
    )


def _colours(theme: Theme) -> str:
    """Return a theme's colours as variables of a style sheet."""
    names = ("paper", "ink", "muted", "faint", "accent")
    return " ".join(f"--{name}: {getattr(theme, name)};" for name in names)


LAYOUT = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { max-width: 1164px; margin: 0 auto; padding: 3.5rem 2rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { margin: 0 0 0.6rem; font-size: 1.3rem; line-height: 1.3; font-weight: 620; letter-spacing: -0.008em; }
p { max-width: 44rem; margin: 0 0 1rem; }
.subtitle { margin: 0.4rem 0 0; font-size: 1.05rem; color: var(--muted); }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.2rem 2rem; margin: 2.2rem 0 0;
  padding: 1.3rem 0; border-top: 1px solid var(--faint); border-bottom: 1px solid var(--faint); }
.summary div:last-child { grid-column: span 2; }
dt { font-size: 0.8rem; color: var(--muted); }
dd { margin: 0.1rem 0 0; font-size: 1.05rem; line-height: 1.4; font-weight: 550;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
nav ol { columns: 17rem; column-gap: 2rem; margin: 1.4rem 0 0; padding: 0 0 0 1.5rem; font-size: 0.93rem; line-height: 1.9; }
nav li { break-inside: avoid; }
nav li::marker { color: var(--muted); font-variant-numeric: tabular-nums; }
section { margin-top: 3.6rem; scroll-margin-top: 1rem; }
figure { margin: 1.2rem 0 0; }
figcaption, .cut { max-width: 44rem; margin: 0.7rem 0 0; font-size: 0.88rem; line-height: 1.5; color: var(--muted); }
.plot, .table { overflow-x: auto; }
.plot img { display: block; max-width: 100%; height: auto; }
pre { overflow-x: auto; margin: 1rem 0; padding: 0.9rem 1.1rem; background: var(--tint); border-radius: 6px; line-height: 1.5;
  font-size: 0.84rem; }
code { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
table { width: max-content; border-collapse: collapse; font-size: 0.86rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: 0.36rem 0.8rem; text-align: left; vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; white-space: nowrap; border-bottom: 1.5px solid var(--muted); }
td { max-width: 30rem; overflow-wrap: break-word; border-bottom: 1px solid var(--faint); }
th.n, td.n { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
.unit { display: block; font-weight: 400; font-size: 0.78rem; color: var(--muted); }
.null { color: var(--muted); }
@media screen and (max-width: 700px) {
  body { padding: 1.8rem 1.1rem 3rem; }
  h1 { font-size: 1.6rem; }
  section { margin-top: 2.6rem; }
  .summary { grid-template-columns: repeat(2, 1fr); gap: 1rem; }
  .plot img { max-width: none; width: max(100%, min(46rem, 190vw)); }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  section { margin-top: 1.6rem; }
  figure, tr { break-inside: avoid; }
  figure:has(table) { break-inside: auto; }
  thead { display: table-header-group; }
  .plot, .table, pre { overflow: visible; }
  pre { white-space: pre-wrap; border: 1px solid var(--faint); }
}
"""
