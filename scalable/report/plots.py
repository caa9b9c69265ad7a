"""What a person looks at: pure functions from arrays to figures, the same in a light and in a dark theme.

No function touches pyplot or any global state of Matplotlib. Axes carry no title, the page gives the heading. A caller passes
at most about 1e5 points a panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH = 10.0
"""Width of a figure [inch]."""
COLUMNS = 3
"""Most fields side by side; more fields go on below."""
WIDE_SKY_DEG = 30.0
"""A footprint of a larger radius is drawn as a Mollweide map, a smaller one on the tangent plane [deg]."""
NUMBERED = 60
"""With more partitions than these a map shows their borders only."""


@dataclass(frozen=True)
class Theme:
    """The colours of a page and its figures; ``cmap`` runs from few to many."""

    name: str
    paper: str
    ink: str
    muted: str
    faint: str
    accent: str
    alert: str
    cmap: tuple[str, ...]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2127",
    muted="#5a6470",
    faint="#dde1e6",
    accent="#3a78ad",
    alert="#c2410c",
    cmap=("#cfe0ee", "#7fb0d6", "#3a78ad", "#1f4a80", "#101f47"),
)
DARK = Theme(
    name="dark",
    paper="#15181c",
    ink="#e7e9ec",
    muted="#9ba5b0",
    faint="#343b44",
    accent="#5fa3d6",
    alert="#f5a742",
    cmap=("#22405c", "#2f6f9f", "#5fa3d6", "#a9d3ef", "#f4fbff"),
)


def colour_by_id(
    fields: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    *,
    label: str,
    threshold: float | None,
    unit: str = "mag",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a colour against the object id, one panel a field on one scale, and mark what lies above a threshold.

    A value very far from all the others stands as a square on the edge of the frame and is counted as outside.

    Parameters
    ----------
    fields : mapping of str to (ids, colour)
        Two arrays of shape (n,) for each field; the colour in ``unit``, NaN where it is unknown.
    label : str
        What the colour is, such as ``"J − Ks"``.
    threshold : float or None
        Objects above it are marked, and their number stands over the panel.
    unit : str
        Unit of the colour.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    if not fields:
        return _sentence("no field to show", theme)
    values = [(np.asarray(colour, dtype=np.float64),) for _, colour in fields.values()]
    frame = _frame(np.concatenate([colour for (colour,) in values]), threshold)
    figure, panels = _panels(values, 3.0, f"{label} [{unit}]" if unit else label, theme)
    for (name, (ids, _)), (colour,), (axes,) in zip(fields.items(), values, panels, strict=True):
        _header(axes, _field(name), _points(axes, ids, colour, frame, threshold, unit, theme), theme)
        if not np.isfinite(colour).any():
            _instead(axes, "no finite value", theme)
    return figure


def deviation_by_id(
    fields: Mapping[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    *,
    label: str,
    threshold: float | None,
    undefined: str = "one epoch: variability undefined",
    unit: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a deviation against the object id on one logarithmic scale: above as measured, below after the zero-point.

    Parameters
    ----------
    fields : mapping of str to (ids, raw, calibrated)
        Three arrays of shape (n,) for each field; the deviations in ``unit``, NaN where undefined. Either may be all NaN.
    label : str
        What the deviation is, such as ``"Standard deviation in Ks"``.
    threshold : float or None
        Objects above it are marked, and their number stands over the panel.
    undefined : str
        The sentence in place of a panel without a finite value.
    unit : str
        Unit of the deviation, empty for a pure number.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    if not fields:
        return _sentence("no field to show", theme)
    values = [tuple(np.asarray(part, dtype=np.float64) for part in (raw, calibrated)) for _, raw, calibrated in fields.values()]
    positive = [tuple(np.where(part > 0, part, np.nan) for part in both) for both in values]
    everything = np.concatenate([part for both in positive for part in both])
    low, high = (10**end for end in _frame(np.log10(everything), math.log10(threshold) if threshold and threshold > 0 else None))
    figure, panels = _panels(positive, 2.3, f"{label} [{unit}]" if unit else label, theme)
    for (name, (ids, _, _)), both, drawn, columns in zip(fields.items(), values, positive, panels, strict=True):
        for axes, deviation, part, state in zip(columns, both, drawn, ("raw", "after zero-point"), strict=True):
            said = _points(axes, ids, part, (low, high), threshold, unit, theme)
            zero = int(np.count_nonzero(deviation == 0))
            _header(axes, f"{_field(name)}, {state}", said + (f"; {zero:,} at 0 not drawn" if zero else ""), theme)
            if not np.isfinite(part).any():
                _instead(axes, "all at 0" if zero else undefined, theme)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    return figure


def magnitudes(magnitudes: NDArray[Any], bands: Sequence[str], *, unit: str = "mag", theme: Theme = LIGHT) -> Figure:
    """Draw all stars as lines through their bands, shaded by how many run there, and a histogram for each band.

    The line joins the medians, the bars hold 16 to 84 % of the stars. Bright is up.

    Parameters
    ----------
    magnitudes : ndarray, shape (n, bands)
        Magnitudes [``unit``], NaN where a star is not measured.
    bands : sequence of str
        Names in the order of the columns, best by wavelength.
    unit : str
        Unit of the magnitudes.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    values = np.where(np.isfinite(magnitudes), magnitudes, np.nan).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return _sentence("no star is measured in these bands", theme)
    edges = np.linspace(*_limits(finite), 181)
    figure = _sheet(WIDTH, 5.0, theme)
    grid = figure.add_gridspec(1, len(bands) + 1, width_ratios=[len(bands), *[0.95] * len(bands)], wspace=0.03)
    lines = figure.add_subplot(grid[0])
    _style(lines, theme, "Band", f"Magnitude [{unit}]")
    mesh = _shade_lines(lines, values, edges, theme)
    lines.set_xticks(range(len(bands)), bands)
    lines.set_ylim(edges[-1], edges[0])
    middle = [_quantiles(values[:, band]) for band in range(len(bands))]
    low, centre, high = np.array(middle).T
    halo = [withStroke(linewidth=3.2, foreground=theme.paper)]
    lines.plot(range(len(bands)), centre, color=theme.alert, lw=1.6, marker="o", ms=4, path_effects=halo)
    lines.vlines(range(len(bands)), low, high, color=theme.alert, lw=1.6, path_effects=halo)
    outside = int(np.count_nonzero((finite < edges[0]) | (finite > edges[-1])))
    stars = int(np.isfinite(values).any(axis=1).sum())
    _header(lines, f"{stars:,} stars", f"{outside:,} magnitudes outside the frame" if outside else "", theme)
    for band, name in enumerate(bands):
        axes = figure.add_subplot(grid[band + 1], sharey=lines)
        _style(axes, theme)
        axes.tick_params(labelleft=False, labelbottom=False, bottom=False)
        axes.spines["bottom"].set_visible(False)
        column = values[:, band][np.isfinite(values[:, band])]
        axes.hist(column, bins=edges[::3].tolist(), orientation="horizontal", color=theme.accent, alpha=0.75)
        if column.size:
            axes.axhline(centre[band], color=theme.alert, lw=1.2)
        _header(axes, name, f"{column.size:,}" + (f"\nmedian {centre[band]:.2f}" if column.size else ""), theme)
    _bar(figure, mesh, figure.axes, "Stars per cell", theme)
    return figure


def colour_colour(x: NDArray[Any], y: NDArray[Any], *, labels: tuple[str, str], theme: Theme = LIGHT) -> Figure:
    """Draw the density of stars over two colours on a logarithmic scale, with both marginal histograms.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Colours [mag]; a star with a NaN in either is left out.
    labels : tuple of str
        What the two axes are, with the unit, such as ``"J − H [mag]"``.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    known = np.isfinite(x) & np.isfinite(y)
    first, second = np.asarray(x, np.float64)[known], np.asarray(y, np.float64)[known]
    if not first.size:
        return _sentence("no star has both colours", theme)
    columns, rows = np.linspace(*_limits(first), 161), np.linspace(*_limits(second), 121)
    counts, _, _ = np.histogram2d(first, second, bins=(columns, rows))
    figure = _sheet(WIDTH, 6.2, theme)
    grid = figure.add_gridspec(2, 2, width_ratios=(6, 1), height_ratios=(1, 5), wspace=0.02, hspace=0.02)
    axes = figure.add_subplot(grid[1, 0])
    above, beside = figure.add_subplot(grid[0, 0], sharex=axes), figure.add_subplot(grid[1, 1], sharey=axes)
    _style(axes, theme, *labels)
    mesh = _density(axes, columns, rows, counts.T, theme)
    above.hist(first, bins=columns[::2].tolist(), color=theme.accent, alpha=0.75)
    beside.hist(second, bins=rows[::2].tolist(), color=theme.accent, alpha=0.75, orientation="horizontal")
    for margin, hidden in ((above, "left"), (beside, "bottom")):
        _style(margin, theme)
        margin.grid(visible=False)
        margin.spines[hidden].set_visible(False)
        margin.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    outside = first.size - int(counts.sum())
    _header(above, f"{first.size:,} stars", f"{outside:,} outside the frame" if outside else "", theme)
    _bar(figure, mesh, [axes, beside], "Stars per cell", theme)
    return figure


def accounting(read: int, stored: int, rejected: int, quarantined_files: int, files: int, *, theme: Theme = LIGHT) -> Figure:
    """Draw where the rows that were read went: one bar, its parts and their counts.

    A non-zero part is never thinner than a line. Rows that are neither stored nor rejected make a part of their own.

    Parameters
    ----------
    read, stored, rejected : int
        Rows.
    quarantined_files, files : int
        Input files that were set aside, and all input files.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    figure = _sheet(WIDTH, 1.15, theme)
    axes = figure.add_subplot()
    axes.set_axis_off()
    parts = [("stored", stored, theme.accent, None), ("rejected", rejected, theme.alert, "////")]
    if read != stored + rejected:
        parts.append(("unaccounted", read - stored - rejected, theme.ink, "xxxx"))
    total = max(read, stored + rejected, 1)
    left = 0.0
    for _, rows, colour, hatch in parts:
        width = max(rows / total, 0.003) if rows > 0 else 0.0
        axes.barh(0, width, left=left, height=1, color=colour, hatch=hatch, edgecolor=theme.paper, linewidth=0.8)
        left += width
    axes.set(xlim=(0, max(left, 1.0)), ylim=(-0.6, 0.6))
    axes.text(0, 1.12, f"{read:,} rows read", transform=axes.transAxes, size=9, color=theme.ink, weight="bold", va="bottom")
    of_files = f"{files:,} files, {quarantined_files:,} quarantined"
    colour = theme.alert if quarantined_files else theme.muted
    axes.text(1, 1.12, of_files, transform=axes.transAxes, size=9, color=colour, ha="right", va="bottom")
    handles = [Patch(facecolor=c, hatch=h, edgecolor=theme.paper, label=_share(n, rows, read)) for n, rows, c, h in parts]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.006, 0.02),
        ncols=len(parts),
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
    )
    return figure


def sky_map(
    outlines: Sequence[tuple[Floats, Floats]], rows: Sequence[int], partition: Sequence[int], *, theme: Theme = LIGHT
) -> Figure:
    """Draw leaves on the sky shaded by their rows, with borders and numbers of the partitions; right ascension grows leftwards.

    A footprint up to 30 deg around its centre is drawn on the tangent plane there, a larger one as a Mollweide map. Neither
    minds right ascension 0 or a pole.

    Parameters
    ----------
    outlines : sequence of (ra_deg, dec_deg)
        Outline of each leaf [deg], two arrays of shape (k,).
    rows : sequence of int
        Rows of each leaf.
    partition : sequence of int
        Partition of each leaf.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    if not outlines:
        return _sentence("no leaf to show", theme)
    ra = np.concatenate([leaf[0] for leaf in outlines])
    centre_ra, centre_dec, radius = _centre(ra, np.concatenate([leaf[1] for leaf in outlines]))
    if radius <= WIDE_SKY_DEG:
        polygons = [_gnomonic(leaf[0], leaf[1], centre_ra, centre_dec) for leaf in outlines]
        leaf_of = np.arange(len(outlines))
        figure, axes = _plane(np.concatenate(polygons), centre_ra, centre_dec, theme)
    else:
        polygons, leaf_of = _both_sides(outlines, centre_ra)
        figure, axes = _whole_sky(centre_ra, theme)
    numbers, counts = np.asarray(partition)[leaf_of], np.asarray(rows, dtype=np.float64)[leaf_of]
    scale = Normalize(0, max(float(counts.max()), 1.0))
    leaves = PolyCollection(polygons, array=counts, cmap=_cmap(theme), norm=scale, edgecolors=theme.paper, linewidths=0.4)
    halo = [withStroke(linewidth=2.5, foreground=theme.paper)]
    borders = LineCollection(list(_borders(polygons, numbers)), colors=theme.ink, linewidths=1.2, path_effects=halo)
    for collection, height in ((leaves, 2.0), (borders, 3.0)):
        collection.set_zorder(height)
        axes.add_collection(collection, autolim=False)
        collection.set_clip_path(axes.patch if radius <= WIDE_SKY_DEG else axes.patches[0])
    for number, (x, y) in _anchors(polygons, numbers).items():
        axes.text(x, y, number, size=8.5, weight="bold", color=theme.ink, ha="center", va="center", path_effects=halo, zorder=4)
    _bar(figure, leaves, [axes], "Rows per leaf", theme)
    return figure


def _sheet(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure [inch] on the theme's paper that no global state knows of."""
    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _sentence(text: str, theme: Theme) -> Figure:
    """Return a slim figure that says why there is nothing to see."""
    figure = _sheet(WIDTH, 1.0, theme)
    _instead(figure.add_subplot(), text, theme)
    return figure


def _instead(axes: Axes, text: str, theme: Theme) -> None:
    """Write a sentence in place of an empty frame."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, size=9.5, style="italic", color=theme.muted, ha="center", va="center")


def _style(axes: Axes, theme: Theme, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the theme's colours, a faint grid and no box."""
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=theme.muted, linewidth=0.7)
    axes.grid(color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=theme.muted, labelcolor=theme.muted, labelsize=8, width=0.7)
    axes.set_xlabel(xlabel, size=9, color=theme.ink)
    axes.set_ylabel(ylabel, size=9, color=theme.ink)


def _panels(fields: Sequence[tuple[Floats, ...]], height: float, label: str, theme: Theme) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and, for every field, styled axes one below the other for its arrays; a row without a value is low.

    All panels share the vertical scale, and the leftmost in a row that has a finite value bears it.
    """
    columns, each = math.ceil(len(fields) / math.ceil(len(fields) / COLUMNS)), len(fields[0])
    blocks = [fields[start : start + columns] for start in range(0, len(fields), columns)]
    filled = [[bool(np.isfinite(field[part]).any()) for field in block] for block in blocks for part in range(each)]
    ratios = [1.0 if any(row) else 0.3 for row in filled]
    figure = _sheet(WIDTH, 0.4 + sum(0.55 + height * ratio for ratio in ratios), theme)
    grid = figure.subplots(len(filled), columns, sharey=True, squeeze=False, height_ratios=ratios)
    for row, full in zip(grid, filled, strict=True):
        for axes in row:
            _style(axes, theme)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.get_offset_text().set(size=7.5, color=theme.muted)
        for axes in row[len(full) :]:
            axes.set_axis_off()
        if any(full):
            row[full.index(True)].tick_params(labelleft=True)
            row[full.index(True)].set_ylabel(label, size=9, color=theme.ink)
    figure.supxlabel("Object ID", size=9, color=theme.ink)
    places = [divmod(number, columns) for number in range(len(fields))]
    return figure, [[grid[block * each + part, column] for part in range(each)] for block, column in places]


def _field(name: str) -> str:
    """Return a field's name, a bare number with the word."""
    return f"Field {name}" if name.isdigit() else name


def _header(axes: Axes, name: str, counts: str, theme: Theme) -> None:
    """Write a name and a line of counts over a panel."""
    head = axes.annotate(counts, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", size=8, va="bottom")
    head.set_color(theme.muted)
    name_over = 16 + 11 * counts.count("\n") if counts else 5
    head = axes.annotate(name, (0, 1), (0, name_over), xycoords="axes fraction", textcoords="offset points", size=9, va="bottom")
    head.set(color=theme.ink, weight="bold")


def _points(
    axes: Axes,
    ids: NDArray[Any],
    heights: Floats,
    frame: tuple[float, float],
    threshold: float | None,
    unit: str,
    theme: Theme,
) -> str:
    """Draw the finite points, mark those above the threshold, and put those beyond the frame on its edge; say how many."""
    finite = np.isfinite(heights)
    above = finite & (heights > (np.inf if threshold is None else threshold))
    outside = finite & ((heights < frame[0]) | (heights > frame[1]))
    for mine, size, colour, alpha, shape in ((finite & ~above, 3, theme.accent, 0.45, "o"), (above, 9, theme.alert, 0.9, "D")):
        near, far = mine & ~outside, mine & outside
        axes.scatter(ids[near], heights[near], size, colour, marker=shape, alpha=alpha, linewidths=0, rasterized=True)
        axes.scatter(ids[far], np.clip(heights[far], *frame), 14, colour, marker="s", clip_on=False, zorder=4, linewidths=0)
    axes.set_ylim(frame)
    shown, marked, beyond = (int(np.count_nonzero(mask)) for mask in (finite, above, outside))
    if threshold is None or not shown:
        said = f"{shown:,} objects"
    else:
        axes.axhline(threshold, color=theme.ink, lw=0.9, ls=(0, (4, 3)))
        said = f"{marked:,} of {shown:,} above {threshold:g} {unit}".rstrip()
    return said + (f"; {beyond:,} outside" if beyond else "")


def _share(name: str, rows: int, read: int) -> str:
    """Say a part of the rows in numbers and per cent, which is 0 or 100 only if it is."""
    percent = 100 * rows / read if read > 0 else math.nan
    if 0 < percent < 0.01:
        return f"{name} {rows:,} (< 0.01 %)"
    if 99.99 < percent < 100:
        return f"{name} {rows:,} (> 99.99 %)"
    return f"{name} {rows:,}" + (f" ({round(percent, 2):g} %)" if read > 0 else "")


def _frame(values: Floats, threshold: float | None) -> tuple[float, float]:
    """Return a range that shows the finite values and the threshold, but no value very far from all the others."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.1, 99.9))
    low, high = max(low - 0.3 * (high - low), finite.min()), min(high + 0.3 * (high - low), finite.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.04 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _limits(values: Floats) -> tuple[float, float]:
    """Return the range of all but the outermost 0.05 % on each side, a little widened."""
    low, high = np.percentile(values, (0.05, 99.95))
    margin = 0.03 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _quantiles(column: Floats) -> Floats:
    """Return the 16, 50 and 84 % quantiles of the finite values, NaN for none."""
    finite = column[np.isfinite(column)]
    return np.percentile(finite, (16, 50, 84)) if finite.size else np.full(3, np.nan)


def _cmap(theme: Theme) -> Any:
    """Return the theme's colour map, from few to many."""
    return LinearSegmentedColormap.from_list(theme.name, theme.cmap)


def _density(axes: Axes, columns: Floats, rows: Floats, counts: Floats, theme: Theme) -> Any:
    """Shade cells by the logarithm of their counts, shape (rows, columns); empty cells stay paper."""
    norm = LogNorm(1, max(2.0, float(counts.max())))
    return axes.pcolormesh(columns, rows, np.ma.masked_equal(counts, 0), cmap=_cmap(theme), norm=norm, rasterized=True)


def _shade_lines(axes: Axes, values: Floats, edges: Floats, theme: Theme) -> Any:
    """Shade how many of the lines through the bands of all stars run through each cell; a line breaks at an unmeasured band."""
    last = values.shape[1] - 1
    columns = np.linspace(-0.3, last + 0.3, 30 * (last + 1) + 1)
    counts = np.zeros((edges.size - 1, columns.size - 1))
    for column, position in enumerate(np.clip((columns[1:] + columns[:-1]) / 2, 0, last)):
        left, right = math.floor(position), math.ceil(position)
        heights = values[:, left] + (position - left) * (values[:, right] - values[:, left])
        counts[:, column] = np.histogram(heights[np.isfinite(heights)], edges)[0]
    return _density(axes, columns, edges, counts, theme)


def _bar(figure: Figure, mesh: Any, axes: list[Axes], label: str, theme: Theme) -> None:
    """Add a slim colour bar on the right of axes."""
    bar = figure.colorbar(mesh, ax=axes, aspect=36, pad=0.02, fraction=0.06)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.ax.tick_params(color=theme.muted, labelcolor=theme.muted, labelsize=8, width=0.7)
    bar.set_label(label, size=9, color=theme.ink)


def _centre(ra_deg: Floats, dec_deg: Floats) -> tuple[float, float, float]:
    """Return right ascension and declination of the mean direction, and the farthest point's distance from it [deg]."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    vectors = np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    mean = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        return 0.0, 0.0, 180.0
    mean /= length
    radius = math.degrees(math.acos(float(np.clip((vectors @ mean).min(), -1, 1))))
    return math.degrees(math.atan2(mean[1], mean[0])) % 360, math.degrees(math.asin(float(np.clip(mean[2], -1, 1)))), radius


def _gnomonic(ra_deg: Floats, dec_deg: Floats, centre_ra: float, centre_dec: float) -> Floats:
    """Project onto the tangent plane [deg], shape (n, 2), x eastwards; NaN beyond 85 deg from the centre."""
    ra, dec, at = np.radians(ra_deg - centre_ra), np.radians(dec_deg), math.radians(centre_dec)
    depth = math.sin(at) * np.sin(dec) + math.cos(at) * np.cos(dec) * np.cos(ra)
    depth = np.where(depth > math.cos(math.radians(85)), depth, np.nan)
    north = math.cos(at) * np.sin(dec) - math.sin(at) * np.cos(dec) * np.cos(ra)
    return np.degrees(np.column_stack([np.cos(dec) * np.sin(ra) / depth, north / depth]))


def _from_plane(x: Floats, y: Floats, centre_dec: float) -> tuple[Floats, Floats]:
    """Return right ascension from the centre's, in [-180, 180], and declination [deg] of points on the tangent plane [deg]."""
    east, north, at = np.radians(x), np.radians(y), math.radians(centre_dec)
    ra = np.arctan2(east, math.cos(at) - north * math.sin(at))
    dec = np.arctan2(math.sin(at) + north * math.cos(at), np.hypot(east, math.cos(at) - north * math.sin(at)))
    return np.degrees(ra), np.degrees(dec)


def _plane(points: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> tuple[Figure, Axes]:
    """Return axes on the tangent plane around ``points``, with lines of right ascension and declination."""
    low, high = points.min(axis=0), points.max(axis=0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ratio = float((high[0] - low[0]) / (high[1] - low[1]))
    height = float(np.clip((WIDTH - 2) / ratio, 2.5, 6.0))
    figure = _sheet(float(np.clip(height * ratio + 2, 5.5, WIDTH)), height + 0.6, theme)
    axes = figure.add_subplot()
    _style(axes, theme, "Right ascension [deg]", "Declination [deg]")
    axes.grid(visible=False)
    axes.set(aspect="equal", xlim=(high[0], low[0]), ylim=(low[1], high[1]))
    pole = math.copysign(math.degrees(math.tan(math.radians(90 - abs(centre_dec)))), centre_dec)
    if low[1] < pole < high[1]:
        _polar_lines(axes, low, high, centre_ra, centre_dec, theme)
    else:
        _lines(axes, low, high, centre_ra, centre_dec, theme)
    return figure, axes


def _lines(axes: Axes, low: Floats, high: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> None:
    """Draw meridians and parallels in a frame without a pole; number them below and on the left."""
    along, up = np.linspace(low[0], high[0], 201), np.linspace(low[1], high[1], 201)
    below, _ = _from_plane(along, np.full(201, low[1]), centre_dec)
    above, _ = _from_plane(along, np.full(201, high[1]), centre_dec)
    _, left = _from_plane(np.full(201, high[0]), up, centre_dec)
    _, middle = _from_plane(np.zeros(201), up, centre_dec)
    ras, step = _round_values(centre_ra + below[0], centre_ra + below[-1])
    decs, dec_step = _round_values(left[0], left[-1])
    axes.set_xticks(np.interp(ras - centre_ra, below, along), [_degrees(ra % 360, step) for ra in ras])
    axes.set_yticks(np.interp(decs, left, up), [_degrees(dec, dec_step) for dec in decs])
    edge = min(below[0], above[0]), max(below[-1], above[-1])
    every_ra, _ = _round_values(centre_ra + edge[0], centre_ra + edge[1], step)
    lowest, highest = min(left[0], middle[0]), max(left[-1], middle[-1])
    every_dec, _ = _round_values(lowest, highest, dec_step)
    curves = [_gnomonic(np.full(101, ra), np.linspace(lowest, highest, 101), centre_ra, centre_dec) for ra in every_ra]
    curves += [_gnomonic(centre_ra + np.linspace(*edge, 101), np.full(101, dec), centre_ra, centre_dec) for dec in every_dec]
    _draw_lines(axes, curves, theme)


def _polar_lines(axes: Axes, low: Floats, high: Floats, centre_ra: float, centre_dec: float, theme: Theme) -> None:
    """Draw meridians and parallels in a frame that holds a pole; number meridians where they leave it, parallels on the way."""
    axes.set(xticks=[], yticks=[], xlabel="Right ascension around the pole, declination on the circles [deg]", ylabel="")
    axes.spines[["top", "right"]].set(visible=True, color=theme.muted, linewidth=0.7)
    south = centre_dec < 0
    farthest = float(np.hypot(*np.maximum(np.abs(low), np.abs(high)))) + 90 - abs(centre_dec)
    distance = np.linspace(0, min(farthest, 80.0), 400)
    circles, step = _round_values(0.0, float(np.min(high - low)) / 2, about=3)
    curves = []
    for ra in np.arange(0.0, 360.0, 30.0):
        curve = _gnomonic(np.full(400, ra), (distance - 90) if south else (90 - distance), centre_ra, centre_dec)
        curves.append(curve)
        inside = np.flatnonzero(((curve > low + 0.03 * (high - low)) & (curve < high - 0.03 * (high - low))).all(axis=1))
        if inside.size and np.hypot(*(curve[inside[-1]] - curve[0])) > 0.2 * np.min(high - low):
            _place(axes, curve[inside[-1]], f"{ra:.0f}", theme)
    around = np.linspace(0, 360, 361)
    for radius in circles[circles > 0]:
        dec = radius - 90 if south else 90 - radius
        curves.append(_gnomonic(around, np.full(361, dec), centre_ra, centre_dec))
        spot = _gnomonic(np.array([centre_ra + 195.0 // 30 * 30 + 15]), np.array([dec]), centre_ra, centre_dec)[0]
        if (spot > low).all() and (spot < high).all():
            _place(axes, spot, _degrees(dec, step), theme)
    _draw_lines(axes, curves, theme)


def _whole_sky(centre_ra: float, theme: Theme) -> tuple[Figure, Axes]:
    """Return axes of a Mollweide map around a right ascension; its frame is the first patch."""
    figure = _sheet(WIDTH, 4.9, theme)
    axes = figure.add_subplot()
    _style(axes, theme, "Right ascension on the equator, declination at the edge [deg]")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(aspect="equal", xlim=(188, -188), ylim=(-94, 94), xticks=[], yticks=[])
    frame = Ellipse((0, 0), 360, 180, facecolor="none", edgecolor=theme.muted, linewidth=0.8, zorder=3.5)
    axes.add_patch(frame)
    side, tall = np.linspace(-180, 180, 181), np.linspace(-90, 90, 181)
    curves = [_mollweide(np.full(181, ra), tall) for ra in np.arange(-150.0, 151.0, 30.0)]
    for dec in np.arange(-60.0, 61.0, 30.0):
        curves.append(_mollweide(side, np.full(181, dec)))
        _place(axes, curves[-1][-1] * 1.04, f"{dec:.0f}", theme)
    for away in np.arange(-120.0, 121.0, 60.0):
        _place(axes, np.array([away, -5.0]), f"{(centre_ra + away) % 360:.0f}", theme)
    _draw_lines(axes, curves, theme)
    return figure, axes


def _mollweide(from_centre: Floats, dec_deg: Floats) -> Floats:
    """Project to an ellipse of 360 by 180, shape (n, 2); right ascension counts from the centre's and may pass 180 [deg]."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, 4001)
    theta = np.interp(np.sin(np.radians(dec_deg)), (2 * angle + np.sin(2 * angle)) / math.pi, angle)
    return np.column_stack([from_centre * np.cos(theta), 90 * np.sin(theta)])


def _both_sides(outlines: Sequence[tuple[Floats, Floats]], centre_ra: float) -> tuple[list[Floats], NDArray[np.int64]]:
    """Project outlines for a map of the whole sky, those over its edge on both sides; return them and the leaf of each."""
    polygons, leaf_of = [], []
    for leaf, (ra, dec) in enumerate(outlines):
        own, _, _ = _centre(ra, dec)
        middle = (own - centre_ra + 180) % 360 - 180
        from_centre = middle + (ra - own + 180) % 360 - 180
        for turn in (-360.0, 0.0, 360.0):
            if (np.abs(from_centre + turn) < 180).any():
                polygons.append(_mollweide(from_centre + turn, dec))
                leaf_of.append(leaf)
    return polygons, np.array(leaf_of)


def _borders(polygons: Sequence[Floats], numbers: NDArray[Any]) -> Floats:
    """Return the pieces of outlines with another partition, or none, on their outer side, shape (n, 2, 2).

    A point is put just outside each piece, and looked for in the polygons of the same partition: leaves of different orders
    share no corners, so that comparing pieces would not do.
    """
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    along = ends - starts
    owner = np.repeat(numbers, [len(polygon) for polygon in polygons])
    area = [np.sum(p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1]) for p in polygons]
    turn = np.repeat(np.sign(area), [len(polygon) for polygon in polygons])[:, None]
    probes = (starts + ends) / 2 + 0.05 * turn * np.column_stack([along[:, 1], -along[:, 0]])
    by_x = np.argsort(probes[:, 0])
    sorted_x = probes[by_x, 0]
    inner = np.zeros(len(probes), dtype=bool)
    for polygon, number in zip(polygons, numbers, strict=True):
        near = by_x[slice(*np.searchsorted(sorted_x, (polygon[:, 0].min(), polygon[:, 0].max())))]
        near = near[owner[near] == number]
        inner[near] |= Outline(polygon).contains_points(probes[near])
    return np.stack([starts, ends], axis=1)[~inner & (along != 0).any(axis=1)]


def _anchors(polygons: Sequence[Floats], numbers: NDArray[Any]) -> dict[str, Floats]:
    """Return where the number of each partition stands: the middle of its leaf nearest to its own middle."""
    names = np.unique(numbers)
    if names.size > NUMBERED:
        return {}
    middles = np.array([polygon.mean(axis=0) for polygon in polygons])
    places = {}
    for name in names:
        own = middles[numbers == name]
        places[str(name)] = own[np.argmin(np.hypot(*(own - own.mean(axis=0)).T))]
    return places


def _round_values(low: float, high: float, step: float | None = None, *, about: int = 5) -> tuple[Floats, float]:
    """Return the multiples of a step from ``low`` to ``high``, and the step: a round one that makes ``about`` of them."""
    if step is None:
        wanted = max((high - low) / about, 1e-7)
        choices = [digit * 10.0**power for power in range(-7, 1) for digit in (1, 2, 5)] + [10.0, 15.0, 30.0, 60.0]
        step = min(choices, key=lambda choice: abs(math.log(choice / wanted)))
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1, dtype=np.float64) * step, step


def _degrees(value: float, step: float) -> str:
    """Write degrees with the decimals that a step needs."""
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def _place(axes: Axes, at: Floats, text: str, theme: Theme) -> None:
    """Write the number of a meridian or parallel on a map."""
    halo = [withStroke(linewidth=2.2, foreground=theme.paper)]
    axes.text(at[0], at[1], text, size=7.5, color=theme.muted, ha="center", va="center", path_effects=halo, zorder=3.6)


def _draw_lines(axes: Axes, curves: Sequence[Floats], theme: Theme) -> None:
    """Draw the faint lines of right ascension and declination over the leaves."""
    axes.add_collection(LineCollection(curves, colors=theme.muted, linewidths=0.5, alpha=0.4, zorder=2.5), autolim=False)
