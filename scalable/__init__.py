"""Distributed dataframe batch processing for large sky surveys.

The words to learn, by stage: describe (`draft_survey`, `open_survey`, `check`), ingest (`plan_ingest`, `ingest`, `plan_append`,
`append`, `open_collection`, `open_catalog`, `list_versions`, `expire_versions`), combine (`join_bands`, `crossmatch`,
`variability`, `compare_bands`, `where_class`, `periodogram`, `structure_function`, `fit_zero_points`, `calibrate`,
`fit_fill_values`, `impute`, `undo`, `cone_search`, `id_search`, `sql`, `write_catalog`), run (`run`, `connect`).
Each is loaded when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    # describe
    "open_survey": "scalable.survey",
    "Survey": "scalable.survey",
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
    "sql": "scalable.catalog.sql",
    "write_catalog": "scalable.catalog.write",
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
