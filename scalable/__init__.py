"""Distributed dataframe batch processing for large sky surveys.

The words to learn are listed by stage in ``_PUBLIC``: describe, ingest, combine, stack, release, train, run. Each is loaded
when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    # describe
    "open_survey": "scalable.survey.read",
    "Survey": "scalable.survey.description",
    "draft_survey": "scalable.catalog.draft",
    "check": "scalable.catalog.check",
    # ingest
    "plan_ingest": "scalable.catalog.plan",
    "ingest": "scalable.catalog.ingest",
    "plan_append": "scalable.catalog.append_plan",
    "append": "scalable.catalog.append",
    "open_collection": "scalable.catalog.collection",
    "Collection": "scalable.catalog.collection",
    "open_catalog": "scalable.catalog.catalog",
    "Catalog": "scalable.catalog.catalog",
    "list_versions": "scalable.catalog.versions",
    "expire_versions": "scalable.catalog.versions",
    # combine
    "join_bands": "scalable.catalog.bands",
    "crossmatch": "scalable.catalog.match",
    "crossmatch_many": "scalable.catalog.match_many",
    "variability": "scalable.catalog.variability",
    "compare_bands": "scalable.catalog.compare",
    "where_class": "scalable.catalog.classes",
    "Statistic": "scalable.kernels.statistic",
    "CrossBandStatistic": "scalable.kernels.cross_band",
    "periodogram": "scalable.kernels.period",
    "multiband_periodogram": "scalable.kernels.period",
    "structure_function": "scalable.kernels.structure",
    "fit_zero_points": "scalable.catalog.zero_points",
    "calibrate": "scalable.catalog.zero_points",
    "fit_fill_values": "scalable.catalog.impute",
    "impute": "scalable.catalog.impute",
    "undo": "scalable.catalog.undo",
    "cone_search": "scalable.catalog.search",
    "id_search": "scalable.catalog.search",
    "box_search": "scalable.catalog.search",
    "polygon_search": "scalable.catalog.search",
    "moc_search": "scalable.catalog.search",
    "sql": "scalable.catalog.sql",
    "explain_sql": "scalable.catalog.sql_explain",
    "list_views": "scalable.catalog.sql_explain",
    "write_table": "scalable.catalog.export",
    "write_catalog": "scalable.catalog.write",
    # stack
    "stack_images": "scalable.cube.stack",
    "CutoutSize": "scalable.cube.stack",
    "Tiles": "scalable.sky.grid",
    "read_objects": "scalable.catalog.objects",
    "write_cube": "scalable.cube.write",
    "open_cube": "scalable.cube.contract",
    "cutout_wcs": "scalable.cube.contract",
    "raw_headers": "scalable.cube.contract",
    "write_cube_page": "scalable.report.cutouts",
    # release
    "Recipe": "scalable.release.recipe",
    "open_recipe": "scalable.release.recipe",
    "plan_release": "scalable.release.write",
    "write_release": "scalable.release.write",
    "open_release": "scalable.release.read",
    "Release": "scalable.release.read",
    "verify_release": "scalable.release.verify",
    "diff_releases": "scalable.release.exchange",
    "to_fits": "scalable.release.exchange",
    # learn
    "Features": "scalable.kernels.features",
    "ClassRule": "scalable.kernels.features",
    "open_rows": "scalable.train.rows",
    "batches_of": "scalable.train.tables",
    "fit_photoz": "scalable.train.photoz",
    "estimator_of": "scalable.train.photoz",
    "evaluate": "scalable.train.photoz",
    "evaluate_pdf": "scalable.train.photoz",
    "compare": "scalable.train.compare",
    "Variant": "scalable.train.compare",
    "usual_variants": "scalable.train.compare",
    "predict": "scalable.train.predict",
    "predict_files": "scalable.train.predict",
    "to_qp": "scalable.train.predict",
    "fit_mixture": "scalable.train.photoz",
    "sample_mixture": "scalable.train.predict",
    "write_sample": "scalable.train.predict",
    "sample_tests": "scalable.train.goodness",
    "Model": "scalable.train.model",
    "open_model": "scalable.train.model",
    "to_onnx": "scalable.train.onnx_graph",
    "write_training_page": "scalable.report.training",
    # run
    "connect": "scalable.cluster",
    "run": "scalable.pipeline",
    "list_products": "scalable.pipeline",
    "ScalableError": "scalable.errors",
}
"""Every public name and the module it comes from; the one place where names are loaded lazily (PEP 562)."""

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'scalable' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
