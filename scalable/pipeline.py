"""`run`: the stages of a survey in order (check, ingest, products, report), each resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from scalable.catalog.append import append
from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.check import Checked, Finding, check
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest, silent
from scalable.catalog.ingest_commit import Progress
from scalable.catalog.light_curves import KEYS
from scalable.catalog.objects import read_objects
from scalable.catalog.published import published_store, send_tree, stage_folder
from scalable.catalog.variability import variability
from scalable.catalog.write import write_catalog
from scalable.catalog.zero_points import calibrate, fit_zero_points
from scalable.cube.contract import open_cube
from scalable.cube.images import find_images
from scalable.cube.stack import role_column, stack_images
from scalable.cube.write import write_cube
from scalable.errors import AdditionError, MissingInputError, SurveyError, nearest
from scalable.io.atomic import write_text
from scalable.io.fits_image import FitsImage
from scalable.io.fits_preview import write_preview
from scalable.io.parquet import read_leaf, write_leaf
from scalable.io.remote import Place, Url, place, send
from scalable.io.runs import read_json, write_json
from scalable.kernels.variability import DEFAULT
from scalable.release.read import open_release
from scalable.release.recipe import open_recipe
from scalable.release.write import write_release
from scalable.report.run_page import write_run_page
from scalable.survey.description import Survey
from scalable.survey.products import Cutouts, Products
from scalable.train.model import Model, open_model
from scalable.train.predict import predict, sample_mixture, write_sample
from scalable.train.products import teach_mixture, teach_photoz

STAGES = ("check", "ingest", "products", "report")
PREVIEW_ROWS = 10_000


@dataclass(frozen=True)
class Product:
    """Something a run made: where it is, what one row is, and how large it is."""

    name: str
    path: Path
    rows: int | None
    size_bytes: int


@dataclass
class RunReport:
    """What a run did.

    ``store`` is the store on this machine; of one at a URL, which is ``url``, the folder that it is built in. ``skipped`` names
    the stages whose result was there already, ``left_out`` the products that were not made, and why; ``seconds`` the time of each
    stage; ``how`` says how the store came to hold what the survey lists, where it held something before.
    """

    store: Path
    url: Url | None = None
    collection: Collection | None = None
    findings: tuple[Finding, ...] = ()
    products: list[Product] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    page: Path | None = None
    how: str = ""

    @property
    def quarantined(self) -> int:
        """Number of files set aside."""
        return self.collection.accounting["quarantined"] if self.collection else 0


def run(
    survey: Survey,
    *,
    into: str | Place,
    only: str | None = None,
    progress: Progress | None = None,
    work: str | Path | None = None,
) -> RunReport:
    """Run a survey's stages in order; computes, on the Dask scheduler in use.

    Parameters
    ----------
    survey : Survey
        From `open_survey`.
    into : str or Path
        The store. At a URL, version, products and page are made on this machine and then sent.
    only : str, optional
        One of `STAGES`; the others must have run before.
    progress : callable, optional
        Called with stage, tasks done, tasks in all and bytes done.
    work : str or Path, optional
        Where versions for a URL are built; by default in the user's cache. All workers must see it.

    Returns
    -------
    RunReport
        Products with their paths, contradictions found, seconds per stage.
    """
    if only is not None and only not in STAGES:
        raise SurveyError(f"no stage {only!r}; {nearest(only, STAGES)}")
    store = place(into)
    report = RunReport(stage_folder(store, work), store) if isinstance(store, Url) else RunReport(store)
    tell = progress or silent
    stages: dict[str, Callable[[Survey, RunReport, Progress], None]] = {
        "check": _check,
        "ingest": _ingest,
        "products": _products,
        "report": _report,
    }
    for name in STAGES if only is None else (only,):
        start = time.monotonic()
        stages[name](survey, report, tell)
        report.seconds[name] = time.monotonic() - start
    return report


def _check(survey: Survey, report: RunReport, progress: Progress) -> None:
    found: Checked = check(survey, on_file=lambda done, total: progress("check", done, total, 0))
    report.findings = found.findings
    for finding in found.findings:
        if finding.name == "missing-images" and survey.products.cutouts:
            # Before the ingest, which may take long: root or glob may be mistyped.
            raise MissingInputError(
                f"products.cutouts needs images: {finding.message}; if they are absent by intention, add accept: "
                "[missing-images] to the survey: all the rest is made then, and a later run makes cutouts once images are there"
            )


def _ingest(survey: Survey, report: RunReport, progress: Progress) -> None:
    worked: list[str] = []

    def tell(stage: str, done: int, total: int, size: int) -> None:
        worked.append(stage)
        progress(stage, done, total, size)

    here = report.url is None and (report.store / "current").exists()
    try:
        report.collection = append(survey, into=report.store, progress=tell) if here else None
        if worked:
            report.how = "appended: only files are new, the rules and all other files are as they were"
    except AdditionError as error:
        report.how = f"ingested anew, not appended: {error.args[0].partition(';')[0]}"
    # The folder of a store at a URL lies in the one that was given as work, or in the cache.
    report.collection = report.collection or ingest(
        survey, into=report.url or report.store, progress=tell, work=report.store.parent
    )
    if not worked:
        report.skipped.append("ingest")


def _collection(report: RunReport) -> Collection:
    """Return the version to work with, on this machine."""
    if report.url and not (report.collection and isinstance(report.collection.path, Path)):
        published_store(report.url, report.store.parent).mirror()
        report.collection = None
    if report.collection is None:
        report.collection = open_collection(report.store)
    return report.collection


def _products(survey: Survey, report: RunReport, progress: Progress) -> None:
    """Write band columns, statistics and calibrated statistics as HATS catalogues beside the version they come from."""
    collection = _collection(report)
    folder = report.store / "products" / collection.path.name
    wanted = survey.products
    recipes: dict[str, Callable[[], Catalog]] = {}
    if wanted.magnitude:
        error = survey.columns[wanted.magnitude].error
        values = [wanted.magnitude, *([error] if error else [])]
        pick = "weighted_mean" if error else "mean"
        recipes["bands"] = lambda: join_bands(collection.detections, values=values, pick=pick)
    if wanted.flux:
        recipes["variability"] = lambda: variability(collection.detections, _statistics(wanted), values=[wanted.flux])
    if wanted.flux and wanted.variability:
        band = wanted.variability.band
        recipes["variability_calibrated"] = lambda: _calibrated(collection, band, wanted, folder)
    _outdated(folder, survey, report)
    before = collection.parent.path.name if collection.parent else ""
    leaves = len(collection.detections.leaves) if recipes else 0
    for number, (name, recipe) in enumerate(recipes.items()):
        tell = partial(_tell, progress, number * leaves, len(recipes) * leaves)
        tell(0)
        path, earlier = folder / name, report.store / "products" / before / name
        if path.exists():
            report.skipped.append(name)
        else:
            write_catalog(recipe(), path, reuse=earlier if before and earlier.exists() else None, on_done=tell)
        tell(leaves)
    if wanted.cutouts and collection.has_positions:
        path = folder / "cutouts.zarr"
        if path.exists():
            report.skipped.append(path.name)
        else:
            _cutouts(survey, wanted.cutouts, collection, path, report, progress)
    _models(survey, collection, folder, report, progress)
    if wanted.release:
        _release(wanted.release, collection, folder, report.store / "products" / before / "release", report, progress)
    name = "objects" if collection.has_positions else "rows"
    preview = folder / f"{name}_preview.fits"
    if not preview.exists():
        write_preview(getattr(collection, name).head(PREVIEW_ROWS), preview)
    if report.url:
        send_tree(folder, report.url / "products" / collection.path.name)


def _cutouts(survey: Survey, wanted: Cutouts, collection: Collection, path: Path, report: RunReport, progress: Progress) -> None:
    """Stack the images around objects that they show, spread evenly along the sky."""
    try:
        images = find_images(survey, FitsImage(), bands=survey.bands)
    except MissingInputError as error:
        if "missing-images" not in survey.accept:
            raise
        report.left_out[path.name] = str(error)
        return
    objects = read_objects(collection.folder / "objects")
    ra, dec = (role_column(objects, role) for role in ("ra", "dec"))
    shown = np.flatnonzero(images.shows(ra, dec))
    if len(shown) == 0:
        raise SurveyError(
            "products.cutouts: no image shows any object; look at images and at the units of positions, or remove it"
        )
    few = objects.take(shown[np.unique(np.linspace(0, len(shown) - 1, wanted.objects).astype(np.int64))])
    cube = stack_images(survey, few, size=wanted.size, combine=wanted.combine, resampling=wanted.resampling, grid=wanted.grid)
    write_cube(cube, path, on_done=lambda done, total: progress("cutouts", done, total, 0))


def _models(survey: Survey, collection: Collection, folder: Path, report: RunReport, progress: Progress) -> None:
    """Teach what the survey asks for; beside a mixture lies a sample, beside redshifts those predicted for every row."""
    mixture, photoz = survey.products.mixture, survey.products.photoz
    teachers: dict[str, Callable[..., Model]] = {}
    if mixture:
        teachers["mixture"] = partial(teach_mixture, survey, mixture, collection)
    if photoz:
        teachers["photoz"] = partial(teach_photoz, photoz, collection)
    models: dict[str, Model] = {}
    for number, (name, teach) in enumerate(teachers.items()):
        progress("train", number, len(teachers), 0)
        path, state = folder / f"{name}.h5", folder / f".{name}.state"
        if path.exists():
            report.skipped.append(path.name)
            models[name] = open_model(path)
        else:
            models[name] = teach(checkpoint=state)
            models[name].save(path)
        state.unlink(missing_ok=True)
        progress("train", number + 1, len(teachers), 0)
    sample, redshifts = folder / "mixture_sample.parquet", folder / "redshifts"
    if mixture and not sample.exists():
        write_sample(sample_mixture(models["mixture"], mixture.rows), sample)
    if photoz and collection.has_positions and not redshifts.exists():
        predicted = predict(collection.detections, models["photoz"], column="z_phot")
        write_catalog(predicted.select(*KEYS, "observation_id", photoz.target, "z_phot"), redshifts)


def _release(recipe_file: str, collection: Collection, folder: Path, parent: Path, report: RunReport, progress: Progress) -> None:
    """Write the release of a version, or leave the one that the same recipe made; the last version's is its parent."""
    recipe, path, cube = open_recipe(recipe_file), folder / "release", folder / "cutouts.zarr"
    if path.exists():
        if open_release(path).manifest["recipe"] == recipe.model_dump(mode="json"):
            report.skipped.append("release")
            return
        shutil.rmtree(path)
    follows = parent.exists() and open_release(parent).manifest["recipe"]["rows"] == recipe.rows
    model = folder / "mixture.h5"
    write_release(
        collection, recipe, into=path, parent=parent if follows else None, cube=cube if recipe.images and cube.exists() else None,
        model=model if recipe.simulate and model.exists() else None,
        on_done=lambda stage, done, total: progress(f"release: {stage}", done, total, 0),
    )  # fmt: skip


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress("products", before + done, total, 0)


def _statistics(wanted: Products) -> list[str]:
    """Return the statistics of a survey's light curves; the page shows variable objects by their largest deviation."""
    names = wanted.statistics or tuple(statistic.name for statistic in DEFAULT)
    return list(dict.fromkeys([*names, "MaxDeviation"] if wanted.variability else names))


def _calibrated(collection: Collection, band: str, wanted: Products, folder: Path) -> Catalog:
    zero_points = fit_zero_points(collection, band=band, value=wanted.flux)
    write_leaf(zero_points, folder, "zero_points.parquet")
    calibrated = calibrate(collection.detections, zero_points, values=[wanted.flux])
    return variability(calibrated, _statistics(wanted), bands=[band], values=[wanted.flux])


def _outdated(folder: Path, survey: Survey, report: RunReport) -> None:
    """Drop products that an earlier description asked for in another way."""
    wanted = survey.products.model_dump(mode="json", include={"magnitude", "flux", "statistics", "variability"})
    for name in ("mixture", "photoz"):
        if asked := getattr(survey.products, name):
            wanted[name] = asked.model_dump(mode="json")
    if survey.images and survey.products.cutouts:
        wanted |= {"cutouts": survey.products.cutouts.model_dump(mode="json"), "images": survey.images.model_dump(mode="json")}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    recipe = folder / "recipe.json"
    if recipe.exists() and read_json(recipe)["digest"] != digest:
        shutil.rmtree(folder)
    write_json(recipe, {"digest": digest, "products": wanted})


def _report(survey: Survey, report: RunReport, progress: Progress) -> None:
    collection = _collection(report)
    folder = report.store / "products" / collection.path.name
    report.page = report.store / "report.html"
    write_run_page(survey, collection, folder, report.findings, report.page, progress=progress)
    report.products = list_products(report.store)
    if report.url:
        # The page shows readers how to open the store.
        write_text(report.page, report.page.read_text(encoding="utf-8").replace(str(report.store), str(report.url)))
        send(report.page, report.url / report.page.name)


def list_products(store: Path) -> list[Product]:
    """Return what a store holds: members of the current version, products made from it, and the page."""
    collection = open_collection(store)
    folder = store / "products" / collection.path.name
    paths = [collection.folder / name for name in ("objects", "detections", "rows", "observations.parquet")]
    paths += sorted(path for path in folder.glob("*") if not path.name.startswith(".") and path.name != "recipe.json")
    paths += [store / "report.html"]
    return [Product(path.name, path, _rows(path), _size(path)) for path in paths if path.exists()]


def _rows(path: Path) -> int | None:
    if path.suffix == ".parquet":
        return read_leaf(path, []).num_rows
    if path.name == "release":
        return open_release(path).rows
    if path.suffix == ".zarr":
        return int(open_cube(path).sizes["object"])
    return open_catalog(path).rows if path.is_dir() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
