"""What several tests of the catalogue share."""

from __future__ import annotations

from scalable.catalog.catalog import Catalog
from scalable.catalog.sql import sql


def count(catalog: Catalog) -> int:
    """Return the number of rows, counted by the lazy code itself."""
    return int(sql(catalog, "SELECT count(*) AS n FROM catalog").compute()["n"][0].as_py())
