"""What a person looks at: pure functions from arrays to figures, the same in a light and in a dark theme.

No function touches pyplot or any global state of Matplotlib. Axes carry no title, the page gives the heading. A caller passes
at most about 1e5 points a panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from scalable.report.style import LIGHT, WIDTH, Theme, colour_bar, density, header, limits, note, sentence, sheet, style_axes

Floats = NDArray[np.float64]

COLUMNS = 3
"""Most fields side by side; more fields go on below."""


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
        return sentence("no field to show", theme)
    values = [(np.asarray(colour, dtype=np.float64),) for _, colour in fields.values()]
    frame = _frame(np.concatenate([colour for (colour,) in values]), threshold)
    figure, panels = _panels(values, 3.0, f"{label} [{unit}]" if unit else label, theme)
    for (name, (ids, _)), (colour,), (axes,) in zip(fields.items(), values, panels, strict=True):
        header(axes, _field(name), _points(axes, ids, colour, frame, threshold, unit, theme), theme)
        if not np.isfinite(colour).any():
            note(axes, "no finite value", theme)
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
        return sentence("no field to show", theme)
    values = [tuple(np.asarray(part, dtype=np.float64) for part in (raw, calibrated)) for _, raw, calibrated in fields.values()]
    positive = [tuple(np.where(part > 0, part, np.nan) for part in both) for both in values]
    everything = np.concatenate([part for both in positive for part in both])
    low, high = (10**end for end in _frame(np.log10(everything), math.log10(threshold) if threshold and threshold > 0 else None))
    figure, panels = _panels(positive, 2.3, f"{label} [{unit}]" if unit else label, theme)
    for (name, (ids, _, _)), both, drawn, columns in zip(fields.items(), values, positive, panels, strict=True):
        for axes, deviation, part, state in zip(columns, both, drawn, ("raw", "after zero-point"), strict=True):
            said = _points(axes, ids, part, (low, high), threshold, unit, theme)
            zero = int(np.count_nonzero(deviation == 0))
            header(axes, f"{_field(name)}, {state}", said + (f"; {zero:,} at 0 not drawn" if zero else ""), theme)
            if not np.isfinite(part).any():
                note(axes, "all at 0" if zero else undefined, theme)
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
        return sentence("no star is measured in these bands", theme)
    edges = np.linspace(*limits(finite), 181)
    figure = sheet(WIDTH, 5.0, theme)
    grid = figure.add_gridspec(1, len(bands) + 1, width_ratios=[len(bands), *[0.95] * len(bands)], wspace=0.03)
    lines = figure.add_subplot(grid[0])
    style_axes(lines, theme, "Band", f"Magnitude [{unit}]")
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
    header(lines, f"{stars:,} objects", f"{outside:,} magnitudes outside the frame" if outside else "", theme)
    for band, name in enumerate(bands):
        axes = figure.add_subplot(grid[band + 1], sharey=lines)
        style_axes(axes, theme)
        axes.tick_params(labelleft=False, labelbottom=False, bottom=False)
        axes.spines["bottom"].set_visible(False)
        column = values[:, band][np.isfinite(values[:, band])]
        axes.hist(column, bins=edges[::3].tolist(), orientation="horizontal", color=theme.accent, alpha=0.75)
        if column.size:
            axes.axhline(centre[band], color=theme.alert, lw=1.2)
        header(axes, name, f"{column.size:,}" + (f"\nmedian {centre[band]:.2f}" if column.size else ""), theme)
    colour_bar(figure, mesh, figure.axes, "Objects per cell", theme)
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
        return sentence("no star has both colours", theme)
    columns, rows = np.linspace(*limits(first), 161), np.linspace(*limits(second), 121)
    counts, _, _ = np.histogram2d(first, second, bins=(columns, rows))
    figure = sheet(WIDTH, 6.2, theme)
    grid = figure.add_gridspec(2, 2, width_ratios=(6, 1), height_ratios=(1, 5), wspace=0.02, hspace=0.02)
    axes = figure.add_subplot(grid[1, 0])
    above, beside = figure.add_subplot(grid[0, 0], sharex=axes), figure.add_subplot(grid[1, 1], sharey=axes)
    style_axes(axes, theme, *labels)
    mesh = density(axes, columns, rows, counts.T, theme)
    above.hist(first, bins=columns[::2].tolist(), color=theme.accent, alpha=0.75)
    beside.hist(second, bins=rows[::2].tolist(), color=theme.accent, alpha=0.75, orientation="horizontal")
    for margin, hidden in ((above, "left"), (beside, "bottom")):
        style_axes(margin, theme)
        margin.grid(visible=False)
        margin.spines[hidden].set_visible(False)
        margin.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    outside = first.size - int(counts.sum())
    header(above, f"{first.size:,} objects", f"{outside:,} outside the frame" if outside else "", theme)
    colour_bar(figure, mesh, [axes, beside], "Objects per cell", theme)
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
    figure = sheet(WIDTH, 1.15, theme)
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


def _panels(fields: Sequence[tuple[Floats, ...]], height: float, label: str, theme: Theme) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and, for every field, styled axes one below the other for its arrays; a row without a value is low.

    All panels share the vertical scale, and the leftmost in a row that has a finite value bears it.
    """
    columns, each = math.ceil(len(fields) / math.ceil(len(fields) / COLUMNS)), len(fields[0])
    blocks = [fields[start : start + columns] for start in range(0, len(fields), columns)]
    filled = [[bool(np.isfinite(field[part]).any()) for field in block] for block in blocks for part in range(each)]
    ratios = [1.0 if any(row) else 0.3 for row in filled]
    figure = sheet(WIDTH, 0.4 + sum(0.55 + height * ratio for ratio in ratios), theme)
    grid = figure.subplots(len(filled), columns, sharey=True, squeeze=False, height_ratios=ratios)
    for row, full in zip(grid, filled, strict=True):
        for axes in row:
            style_axes(axes, theme)
            axes.xaxis.set_major_locator(MaxNLocator(5 - min(columns, 2), integer=True))
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


def _quantiles(column: Floats) -> Floats:
    """Return the 16, 50 and 84 % quantiles of the finite values, NaN for none."""
    finite = column[np.isfinite(column)]
    return np.percentile(finite, (16, 50, 84)) if finite.size else np.full(3, np.nan)


def _shade_lines(axes: Axes, values: Floats, edges: Floats, theme: Theme) -> Any:
    """Shade how many of the lines through the bands of all stars run through each cell; a line breaks at an unmeasured band."""
    last = values.shape[1] - 1
    columns = np.linspace(-0.3, last + 0.3, 30 * (last + 1) + 1)
    counts = np.zeros((edges.size - 1, columns.size - 1))
    for column, position in enumerate(np.clip((columns[1:] + columns[:-1]) / 2, 0, last)):
        left, right = math.floor(position), math.ceil(position)
        heights = values[:, left] + (position - left) * (values[:, right] - values[:, left])
        counts[:, column] = np.histogram(heights[np.isfinite(heights)], edges)[0]
    return density(axes, columns, edges, counts, theme)
