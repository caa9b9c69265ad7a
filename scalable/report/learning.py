"""Figures of what was learnt: redshifts against the truth, residuals, learning curves, pair plots, mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from scalable.report.style import (
    LIGHT,
    WIDTH,
    Theme,
    colour_bar,
    colour_map,
    density,
    header,
    limits,
    note,
    sentence,
    sheet,
    style_axes,
)

Floats = NDArray[np.float64]

KDE_ROWS = 2000
SCATTER_ROWS = 3000


def redshifts(sides: Mapping[str, tuple[Floats, Floats]], *, theme: Theme = LIGHT) -> Figure:
    """Draw z_phot against z_spec as a density with the line of equality, one panel for each of ``sides``.

    Parameters
    ----------
    sides : mapping of str to (z_spec, z_phot)
        Such as ``train`` and ``test``; arrays of shape (n,).
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    every = np.concatenate([np.concatenate(pair) for pair in sides.values()])
    if not every.size:
        return sentence("no redshift to show", theme)
    edges = np.linspace(*limits(every), 121)
    figure = sheet(WIDTH, 0.9 + WIDTH / max(len(sides), 2) * 0.9, theme)
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    counts = {name: np.histogram2d(spec, phot, bins=(edges, edges))[0].T for name, (spec, phot) in sides.items()}
    largest = max(found.max() for found in counts.values())
    mesh: Any = None
    for axes, (name, (spec, phot)) in zip(panels, sides.items(), strict=True):
        style_axes(axes, theme, "Spectroscopic redshift", "Photometric redshift" if axes is panels[0] else "")
        found = counts[name].copy()
        mesh = density(axes, edges, edges, found, theme)
        mesh.norm.vmax = max(2.0, largest)
        axes.plot(edges[[0, -1]], edges[[0, -1]], color=theme.alert, lw=1.2, ls=(0, (5, 3)))
        axes.set_aspect("equal")
        error = np.median(np.abs(phot - spec) / (1 + spec)) if spec.size else np.nan
        outside = spec.size - int(found.sum())
        said = f"{spec.size:,} galaxies, median |dz| {error:.4f}" + (f"; {outside:,} outside" if outside else "")
        header(axes, name, said, theme)
    colour_bar(figure, mesh, list(panels), "Galaxies per cell", theme)
    return figure


def residuals(
    panels: Mapping[str, Floats], sides: Mapping[str, tuple[Mapping[str, Floats], Floats]], *, theme: Theme = LIGHT
) -> Figure:
    """Draw median and 16 to 84 % of dz in bins of each quantity, train beside test.

    Parameters
    ----------
    panels : mapping of str to ndarray
        Name (with unit) and bin edges of each quantity.
    sides : mapping of str to (quantities, dz)
        Arrays of shape (n,); the quantities by the names of ``panels``.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    figure = sheet(WIDTH, 3.8, theme)
    found = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = (theme.muted, theme.accent)
    for axes, (name, edges) in zip(found, panels.items(), strict=True):
        style_axes(axes, theme, name, "dz = (z_phot − z_spec) / (1 + z_spec)" if axes is found[0] else "")
        middle = (edges[1:] + edges[:-1]) / 2
        for n, (side, (quantities, dz)) in enumerate(sides.items()):
            place = np.searchsorted(edges, quantities[name], side="right") - 1
            inside = [dz[place == b] for b in range(len(middle))]
            levels = np.array([np.percentile(part, (16, 50, 84)) if len(part) >= 5 else [np.nan] * 3 for part in inside])
            colour = colours[min(n, 1)] if len(sides) > 1 else theme.accent
            axes.fill_between(middle, levels[:, 0], levels[:, 2], color=colour, alpha=0.25, lw=0)
            axes.plot(middle, levels[:, 1], color=colour, marker="o", ms=3.5, lw=1.4, label=f"{side}, median and 16 to 84 %")
        axes.axhline(0, color=theme.ink, lw=0.8)
    found[0].legend(loc="upper left", frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def learning_curves(curves: Mapping[str, Sequence[float]], *, label: str = "Loss", theme: Theme = LIGHT) -> Figure:
    """Draw losses against epochs, on a logarithmic scale if they span more than a decade; the least of the last is marked."""
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return sentence("nothing was learnt in epochs", theme)
    figure = sheet(WIDTH, 3.4, theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, "Epoch", label)
    for (name, curve), colour in zip(curves.items(), (theme.accent, theme.alert), strict=False):
        axes.plot(range(1, len(curve) + 1), curve, color=colour, lw=1.5, label=name)
    last = np.asarray(list(curves.values())[-1])
    axes.axvline(int(last.argmin()) + 1, color=theme.muted, lw=0.9, ls=(0, (4, 3)))
    lowest, highest = (end(end(curve) for curve in curves.values()) for end in (min, max))
    if 0 < 10 * lowest < highest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper right", frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def pairs(columns: Floats, names: Sequence[str], *, theme: Theme = LIGHT) -> Figure:
    """Draw every pair of quantities: density estimates on the diagonal, 2-D histograms below, points above.

    Parameters
    ----------
    columns : ndarray, shape (quantities, n)
        Finite.
    names : sequence of str
        With units.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    d, n = columns.shape
    if n < 3:
        return sentence("too few rows for a pair plot", theme)
    side = min(WIDTH, 1.2 + 2.2 * d)
    figure = sheet(side, side, theme)
    grid = figure.subplots(d, d, squeeze=False)
    bounds = [limits(column) for column in columns]
    some = np.linspace(0, n - 1, min(n, SCATTER_ROWS)).astype(int)
    few = np.linspace(0, n - 1, min(n, KDE_ROWS)).astype(int)
    for i in range(d):
        for j in range(d):
            axes = grid[i, j]
            style_axes(axes, theme, names[j] if i == d - 1 else "", names[i] if j == 0 else "")
            axes.tick_params(labelbottom=i == d - 1, labelleft=j == 0, labelsize=7)
            axes.set_xlim(bounds[j])
            if i == j:
                places = np.linspace(*bounds[i], 200)
                if np.ptp(columns[i, few]) > 0:
                    axes.fill_between(places, gaussian_kde(columns[i, few])(places), color=theme.accent, alpha=0.45, lw=0)
                axes.tick_params(labelleft=False, left=False)
                axes.set_ylim(bottom=0)
            elif i > j:
                across, up = (np.linspace(*bounds[k], 61) for k in (j, i))
                density(axes, across, up, np.histogram2d(columns[j], columns[i], bins=(across, up))[0].T, theme)
            else:
                axes.scatter(columns[j, some], columns[i, some], 2, theme.accent, alpha=0.35, linewidths=0, rasterized=True)
                axes.set_ylim(bounds[i])
    return figure


def explained_variance(ratios: Sequence[float], *, theme: Theme = LIGHT) -> Figure:
    """Draw the share of the variance that each principal component explains, and their sum."""
    figure = sheet(WIDTH, 3.0, theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, "Principal component", "Share of the variance")
    number = np.arange(1, len(ratios) + 1)
    axes.bar(number, ratios, color=theme.accent, alpha=0.75, width=0.6, label="each")
    axes.plot(number, np.cumsum(ratios), color=theme.alert, marker="o", ms=4, lw=1.4, label="together")
    axes.set(xticks=number, ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc="center right")
    return figure


def criteria(rows: Sequence[Mapping[str, Any]], *, theme: Theme = LIGHT) -> Figure:
    """Draw BIC, and log likelihood per row in training and held out, against the number of components."""
    figure = sheet(WIDTH, 3.4, theme)
    left, right = figure.subplots(1, 2)
    numbers = [row["components"] for row in rows]
    style_axes(left, theme, "Components", "BIC above the least")
    bic = np.array([row["bic"] for row in rows])
    least = int(np.argmin(bic))
    left.plot(numbers, bic - bic[least], color=theme.accent, marker="o", ms=4, lw=1.5)
    left.plot(numbers[least], 0, "D", color=theme.alert, ms=7, clip_on=False, zorder=4)
    left.set_yscale("symlog", linthresh=max(10.0, float(np.sort(bic - bic[least])[min(1, len(bic) - 1)])))
    left.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    header(left, f"BIC {bic[least]:,.0f}, least at {numbers[least]} components", "", theme)
    style_axes(right, theme, "Components", "Log likelihood per row")
    curves = {"training rows": [row["train"] for row in rows], "held-out rows": [row["held_out"] for row in rows]}
    for (name, curve), colour in zip(curves.items(), (theme.muted, theme.accent), strict=True):
        if None not in curve:
            right.plot(numbers, curve, color=colour, marker="o", ms=4, lw=1.4, label=name)
    # A single Gaussian lies far below all others, whose differences are what one looks for.
    shown = sorted(value for curve in curves.values() if None not in curve for value in curve)
    cut = [value for value in shown if value < shown[len(shown) // 2] - 6 * (shown[-1] - shown[len(shown) // 2])]
    if cut and len(shown) > 4:
        right.set_ylim(bottom=shown[len(cut)] - 0.1 * (shown[-1] - shown[len(cut)]))
        header(right, f"{len(cut)} points below the frame, the lowest at {cut[0]:.3f}", "", theme)
    right.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc="lower right")
    for axes in (left, right):
        axes.set_xticks(numbers, [str(number) for number in numbers])
    return figure


def mixture_samples(
    data: Floats, samples: Mapping[str, tuple[Floats, Any]], names: tuple[str, str], *, theme: Theme = LIGHT
) -> Figure:
    """Draw data, samples of mixtures and their residuals as densities over two features, on the same axes.

    Parameters
    ----------
    data : ndarray, shape (2, n)
    samples : mapping of str to (rows, parameters)
        Rows of shape (2, m) and the mixture's parameters in these two features, whose components are outlined at two deviations.
    names : tuple of str
        The features, with units.
    theme : Theme
        Colours.

    Returns
    -------
    Figure
    """
    edges = [np.linspace(*limits(axis), 81) for axis in data]
    real = np.histogram2d(data[0], data[1], bins=(edges[0], edges[1]))[0].T
    figure = sheet(WIDTH, 3.4 * (1 + len(samples)) - 0.6, theme)
    grid = figure.subplots(1 + len(samples), 3, squeeze=False)
    _density_panel(grid[0, 0], edges, real, names, theme)
    header(grid[0, 0], "data", f"{data.shape[1]:,} rows", theme)
    for n, name in enumerate(names):
        axes = grid[0, 1 + n]
        style_axes(axes, theme, name, "Density")
        axes.hist(data[n], edges[n].tolist(), density=True, color=theme.muted, alpha=0.35, label="data")
        for (label, (rows, _)), colour, style in zip(samples.items(), (theme.accent, theme.alert), ("-", "--"), strict=False):
            axes.hist(rows[n], edges[n].tolist(), density=True, histtype="step", color=colour, lw=1.4, ls=style, label=label)
        axes.legend(loc="upper right", frameon=False, fontsize=7.5, labelcolor=theme.ink)
    for row, (label, (rows, parameters)) in zip(grid[1:], samples.items(), strict=True):
        drawn = np.histogram2d(rows[0], rows[1], bins=(edges[0], edges[1]))[0].T * (data.shape[1] / rows.shape[1])
        _density_panel(row[0], edges, drawn, names, theme)
        header(row[0], label, f"{rows.shape[1]:,} rows drawn, scaled to the data", theme)
        _components(row[1], edges, parameters, names, theme)
        header(row[1], "components", "weight by line, at two deviations", theme)
        error = (real - drawn) / np.sqrt(np.maximum(real, 1.0))
        error = np.where((real == 0) & (drawn < 0.5), np.nan, error)
        style_axes(row[2], theme, *names)
        cmap = "RdBu_r" if theme is LIGHT else "coolwarm"
        mesh = row[2].pcolormesh(*edges, error, cmap=cmap, norm=TwoSlopeNorm(0, -6, 6), rasterized=True)
        header(row[2], "data less sample", "in units of the square root of the count", theme)
        colour_bar(figure, mesh, [row[2]], "Residual", theme)
    return figure


def _density_panel(axes: Axes, edges: list[Floats], counts: Floats, names: tuple[str, str], theme: Theme) -> None:
    style_axes(axes, theme, *names)
    density(axes, edges[0], edges[1], np.where(counts < 0.5, 0.0, np.maximum(counts, 1.0)), theme)


def _components(axes: Axes, edges: list[Floats], parameters: Any, names: tuple[str, str], theme: Theme) -> None:
    style_axes(axes, theme, *names)
    colours = colour_map(theme)
    for weight, mean, spread in zip(parameters.weights, parameters.means, parameters.covariances, strict=True):
        values, vectors = np.linalg.eigh(spread)
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        width, height = 4 * np.sqrt(values[::-1])
        strength = float(np.sqrt(weight / parameters.weights.max()))
        colour = colours(0.35 + 0.65 * strength)
        axes.add_patch(Ellipse(tuple(mean), width, height, angle=angle, fill=False, ec=colour, lw=0.6 + 2 * strength))
        axes.plot(*mean, "+", color=colour, ms=5)
    axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])


def importance(found: Mapping[str, float], *, label: str = "Growth of median |dz|", theme: Theme = LIGHT) -> Figure:
    """Draw how much worse the prediction gets when one feature is shuffled."""
    if not found:
        return sentence("no feature", theme)
    figure = sheet(WIDTH, 0.9 + 0.34 * len(found), theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, label)
    ordered = sorted(found.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=theme.accent, alpha=0.75, height=0.6)
    axes.grid(visible=False, axis="y")
    if not any(value for value in found.values()):
        note(axes, "no feature matters", theme)
    return figure
