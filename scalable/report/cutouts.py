"""What a person looks at of a cube: cutouts by band, their colours, which pixels were measured, how deep; and its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from astropy.visualization import make_lupton_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from scalable.cube.contract import STATES, about_cube
from scalable.report.page import Section, write_page
from scalable.report.style import LIGHT, WIDTH, Theme, note, sentence, sheet, style_axes

SHOWN_OBJECTS = 6
SHOWN_BANDS = 12
SAMPLED = 256
"""Objects from which coverage and depth are estimated."""

Pixels = NDArray[Any]


def mosaic(images: Pixels, bands: Sequence[str], labels: Sequence[str], *, theme: Theme = LIGHT) -> Figure:
    """Draw cutouts, a row for each object and a column for each band; each on a scale of its own, and white where there is none.

    Parameters
    ----------
    images : ndarray, shape (objects, bands, y, x)
        Values; NaN where there is none.
    bands, labels : sequence of str
        Of the columns and rows.
    theme : Theme
        Colours.
    """
    if images.size == 0:
        return sentence("no cutout to show", theme)
    rows, columns = images.shape[:2]
    figure = sheet(WIDTH, WIDTH / max(columns, 4) * rows + 0.3, theme)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column in range(columns):
            axes, image = grid[row, column], images[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set(color=theme.faint)
            axes.set_facecolor(theme.paper)
            finite = image[np.isfinite(image)]
            if len(finite):
                low, middle, high = np.percentile(finite, [1, 60, 99.8])
                # As astronomers look: linear where it is faint, logarithmic where it is bright.
                stretched = np.arcsinh((image - low) / max(3 * (middle - low), (high - low) / 1000, 1e-12))
                axes.imshow(stretched, origin="lower", cmap="gray", interpolation="nearest")
            else:
                note(axes, "not observed", theme)
            if row == 0:
                axes.set_title(bands[column], size=9, color=theme.ink)
            if column == 0:
                axes.set_ylabel(labels[row], size=8, color=theme.muted)
    return figure


def colours(images: Pixels, labels: Sequence[str], *, theme: Theme = LIGHT) -> Figure:
    """Draw cutouts in colour, after Lupton et al. (2004): a preview, of which nothing is measured.

    The unit of a band is its noise in all cutouts, so that one colour means one thing in all of them; where a band has no value,
    there is no colour.

    Parameters
    ----------
    images : ndarray, shape (objects, 3, y, x)
        Red, green and blue.
    labels : sequence of str
        Of the objects.
    theme : Theme
        Colours.
    """
    if images.size == 0:
        return sentence("no cutout to show", theme)
    figure = sheet(WIDTH, WIDTH / max(len(images), 4) + 0.3, theme)
    grid = figure.subplots(1, max(len(images), 4), squeeze=False)[0]
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    above = np.array([[plane - _median(plane) for plane in planes] for planes in images])
    noise = [max(1.4826 * _median(np.abs(above[:, band])), 1e-12) for band in range(3)]
    for axes, planes, label in zip(grid, above, labels, strict=False):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color=theme.faint)
        axes.set_title(label, size=8, color=theme.muted)
        known = np.isfinite(planes).all(axis=0)
        filled = [np.where(known, plane / unit, 0.0) for plane, unit in zip(planes, noise, strict=True)]
        with np.errstate(invalid="ignore"):  # astropy divides nought by nought, and then passes it over
            shown = make_lupton_rgb(*filled, stretch=10, Q=8)
        axes.set_facecolor(theme.paper)
        axes.imshow(np.dstack([shown, 255 * known.astype(np.uint8)]), origin="lower", interpolation="nearest")
    return figure


def _median(values: Pixels) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def coverage(state: Pixels, bands: Sequence[str], *, theme: Theme = LIGHT) -> Figure:
    """Draw which part of all pixels is measured, masked, outside of the images, and not observed, a bar for each band.

    Parameters
    ----------
    state : ndarray of uint8, shape (objects, bands, …)
        `PixelState`.
    bands : sequence of str
        Of the bars.
    theme : Theme
        Colours.
    """
    figure = sheet(WIDTH, 0.9 + 0.28 * len(bands), theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, "part of all pixels")
    shades = (theme.accent, theme.alert, theme.muted, theme.faint)
    flat = np.moveaxis(state, 1, 0).reshape(len(bands), -1)
    left = np.zeros(len(bands))
    for code, shade in enumerate(shades):
        part = (flat == code).mean(axis=1)
        axes.barh(np.arange(len(bands)), part, left=left, color=shade, height=0.7)
        left += part
    axes.set_yticks(np.arange(len(bands)), bands)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    handles = [Patch(color=shade, label=name.replace("_", " ")) for shade, name in zip(shades, STATES.values(), strict=True)]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, labelcolor=theme.ink, fontsize=8)
    return figure


def depth(noise: Sequence[Pixels], bands: Sequence[str], unit: str, *, theme: Theme = LIGHT) -> Figure:
    """Draw how noisy the pixels of each object are: median, and the range of nine tenths of the objects, for each band.

    Parameters
    ----------
    noise : sequence of ndarray
        For each band, the standard deviation of a pixel in each object; NaN where unknown.
    bands : sequence of str
        Of the rows.
    unit : str
        Of the pixels.
    theme : Theme
        Colours.
    """
    if not any(np.isfinite(values).any() for values in noise):
        return sentence("no inverse variances: the depth is unknown", theme)
    figure = sheet(WIDTH, 0.9 + 0.28 * len(bands), theme)
    axes = figure.add_subplot()
    style_axes(axes, theme, f"standard deviation of a pixel{f' [{unit}]' if unit else ''}")
    for row, values in enumerate(noise):
        finite = values[np.isfinite(values)]
        if len(finite):
            low, middle, high = np.percentile(finite, [5, 50, 95])
            axes.plot([low, high], [row, row], color=theme.muted, linewidth=2, solid_capstyle="round")
            axes.plot(middle, row, "o", color=theme.accent, markersize=6)
    axes.set_yticks(range(len(bands)), bands)
    axes.set_ylim(len(bands) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max(np.nanmax(values, initial=0) for values in noise))
    return figure


def cube_sections(cube: xr.Dataset) -> list[Section]:
    """Return what a page shows of a cube; a bounded number of its objects is read."""
    leading = str(cube["image"].dims[0])
    about = about_cube(cube)
    bands = [str(band) for band in cube["band"].values]
    order = np.argsort(
        cube["pad_fraction"].mean([dim for dim in cube["pad_fraction"].dims if dim != leading]).values, kind="stable"
    )
    best = cube.isel({leading: np.sort(order[:SHOWN_OBJECTS])})
    images = best["image"].isel(band=slice(0, SHOWN_BANDS)).values
    if "epoch" in cube.dims:
        images = images[:, :, 0]
    labels = [str(value) for value in best[f"{leading}_id"].values]
    step = max(1, cube.sizes[leading] // SAMPLED)
    sample = cube.isel({leading: slice(0, step * SAMPLED, step)})
    state = sample["state"].values
    noise = [np.array([np.nan])] * len(bands)
    if "ivar" in cube:
        ivar = np.where((state == 0) & (sample["ivar"].values > 0), sample["ivar"].values, np.nan)
        noise = [np.array([_noise(one) for one in band]) for band in np.moveaxis(ivar, 1, 0)]
    of = f"{cube.sizes[leading]:,} {'tiles' if leading == 'tile' else 'objects'}"
    how = "each exposure by itself, the first is shown" if about["combine"] is None else f"combined by {about['combine']}"
    what = f"{of}, {about['size']} x {about['size']} pixels, {how}; pixels: {about['resampling']}.{_psf(cube)}"
    sections = [
        Section(
            "Cutouts",
            what,
            _drawn(mosaic, images, bands[:SHOWN_BANDS], labels),
            caption="Each on a scale of its own; empty where a pixel has no value.",
        ),
    ]
    if len(bands) >= 3:
        rgb = images[:, [min(len(bands), SHOWN_BANDS) - 1, min(len(bands), SHOWN_BANDS) // 2, 0]]
        names = ", ".join(bands[n] for n in (min(len(bands), SHOWN_BANDS) - 1, min(len(bands), SHOWN_BANDS) // 2, 0))
        sections.append(
            Section("Colours", "", _drawn(colours, rgb, labels), caption=f"{names} as red, green, blue; a preview, no data.")
        )
    sections.append(Section("Coverage", "", _drawn(coverage, state, bands), caption=f"From {len(state):,} of {of}."))
    unit = str(cube["image"].attrs.get("units", ""))
    caption = "Median over objects, and the range of nine tenths of them."
    sections.append(Section("Depth of the pixels", "", _drawn(depth, noise, bands, unit), caption=caption))
    return sections


def _psf(cube: xr.Dataset) -> str:
    """Say how wide point sources are, if that is known."""
    if "psf_fwhm_after" not in cube or not np.isfinite(cube["psf_fwhm_after"].values).any():
        return ""
    before, after = (float(np.nanmedian(cube[name].values)) for name in ("psf_fwhm", "psf_fwhm_after"))
    return f" Point sources are {before:.2f} arcsec wide in the images and {after:.2f} arcsec here (FWHM, median)."


def _noise(ivar: Pixels) -> float:
    known = ivar[np.isfinite(ivar)]
    return 1 / float(np.sqrt(np.median(known))) if len(known) else np.nan


def _drawn(figure: Callable[..., Figure], *values: Any) -> Callable[[Theme], Figure]:
    """Return what draws a figure in a theme."""
    return lambda theme: figure(*values, theme=theme)


def write_cube_page(cube: xr.Dataset, path: Path, *, opened_from: str) -> None:
    """Write one self-contained page about a cube."""
    about = about_cube(cube)
    quarantine = json.loads(cube.attrs["quarantine"])
    sections = cube_sections(cube)
    if quarantine:
        table = pa.table({name: [row[name] for row in quarantine] for name in ("file", "reason")})
        sections.append(Section("Set aside", f"{len(quarantine)} files could not be used.", table=table))
    code = (
        f"import scalable\ncube = scalable.open_cube({opened_from!r})\ncube['image'].isel(object=[0, 1, 2]).values\n\n"
        f"import xarray\ncube = xarray.open_zarr({opened_from!r}, consolidated=False)"
    )
    sections.append(Section("How to open it", code=code.replace("isel(object", f"isel({cube['image'].dims[0]}")))
    summary = {
        "Objects": f"{cube.sizes[str(cube['image'].dims[0])]:,}",
        "Bands": ", ".join(map(str, cube["band"].values)),
        "Exposures": f"{cube.sizes['exposures']:,}",
        "Source files": f"{cube.sizes['source']:,}",
        "Set aside": str(len(quarantine)),
    }
    write_page(path, title=f"Cube of {about['survey']}", subtitle="", sections=sections, summary=summary)
