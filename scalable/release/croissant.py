"""Croissant 1.1 (MLCommons) of a release, with the fields of responsible AI: records load from the index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalable.release.datasheet import datasheet

_TERMS = (
    "citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isLiveDataset",
    "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "separator",
    "source", "subField", "transform",
)  # fmt: skip
_CONTEXT: dict[str, Any] = {term: f"cr:{term}" for term in _TERMS} | {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
_ABOUT = ("name", "unit", "ucd", "description", "reason", "dtype")


def croissant(manifest: Mapping[str, Any], index_sha256: str) -> dict[str, Any]:
    """Return the description of a release; ``index_sha256`` is that of its index."""
    sheet = {name: entry["answer"] for name, entry in datasheet(manifest).items()}
    records = [
        {"@type": "cr:RecordSet", "@id": "index", "name": "index", "description": "One record a row, with its shard",
         "field": [_field(name, dtype) for name, dtype in manifest["index"].items()]},
        {"@type": "cr:RecordSet", "@id": "columns", "name": "columns", "description": "What the datasets of a shard are",
         "field": [{"@type": "cr:Field", "@id": f"columns/{key}", "name": key, "dataType": "sc:Text"} for key in _ABOUT],
         "data": [{f"columns/{key}": column[key] for key in _ABOUT} for column in manifest["columns"]]},
    ]  # fmt: skip
    files = [
        {"@type": "cr:FileObject", "@id": "index.parquet", "name": "index.parquet", "contentUrl": "index.parquet",
         "encodingFormat": "application/x-parquet", "sha256": index_sha256},
    ]  # fmt: skip
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest["name"],
        "description": manifest["title"],
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "license": manifest["license"],
        "version": manifest["version"],
        "datePublished": manifest["date"],
        "citeAs": sheet["distribution_citation"],
        "rai:dataCollection": sheet["collection_source"],
        "rai:dataPreprocessingProtocol": sheet["preprocessing_steps"],
        "rai:dataUseCases": sheet["uses_intended"],
        "rai:dataLimitations": sheet["uses_unsuitable"],
        "rai:dataBiases": sheet["uses_biases"],
        "rai:dataImputationProtocol": sheet["composition_missing"],
        "rai:personalSensitiveInformation": sheet["composition_people"],
        "rai:dataReleaseMaintenancePlan": sheet["maintenance_versions"],
        "distribution": files,
        "recordSet": records,
    }


def _field(name: str, dtype: str) -> dict[str, Any]:
    kinds = {"int": "sc:Integer", "uint": "sc:Integer", "float": "sc:Float", "double": "sc:Float"}
    kind = next((found for start, found in kinds.items() if dtype.startswith(start)), "sc:Text")
    source = {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}}
    return {"@type": "cr:Field", "@id": f"index/{name}", "name": name, "dataType": kind, "source": source}
