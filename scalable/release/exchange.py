"""`diff_releases` and `to_fits`: two releases row by row, and the source files out of one."""

from __future__ import annotations

from pathlib import Path

from scalable.errors import StoreError
from scalable.io.atomic import aside
from scalable.io.parquet import read_leaf
from scalable.io.remote import local_place
from scalable.release import manifest as names
from scalable.release.manifest import read_manifest
from scalable.release.resample import listed_sources, stored_headers
from scalable.release.version import Diff, compare_rows
from scalable.release.whole import read_back, whole_path


def diff_releases(old: str | Path, new: str | Path) -> Diff:
    """Compare two releases row by row; reads their indexes.

    Raises
    ------
    StoreError
        If one holds objects and the other detections.
    """
    first, second = local_place(old), local_place(new)
    kinds = [read_manifest(path)["recipe"]["rows"] for path in (first, second)]
    if kinds[0] != kinds[1]:
        raise StoreError(f"{first} holds {kinds[0]} and {second} {kinds[1]}: their rows cannot be compared")
    return compare_rows(read_leaf(second / names.INDEX), read_leaf(first / names.INDEX), kinds[0])


def to_fits(release: str | Path, into: str | Path) -> list[Path]:
    """Write back what a release holds of its source files.

    Parameters
    ----------
    release : str or Path
        The release.
    into : str or Path
        Folder for the files, under their paths below the survey's root.

    Returns
    -------
    list of Path
        FITS files, bit for bit those that were read (of compressed ones, what they unpack to), where the release holds whole
        sources; else files ``NAME.hdr`` with the raw headers of all HDUs, one after another.

    Raises
    ------
    StoreError
        If the release names a path outside ``into``, or is damaged.
    """
    folder, target = local_place(release), local_place(into).resolve()
    read_manifest(folder)
    headers = stored_headers(folder)
    written = []
    for source in listed_sources(folder):
        path = (target / source.uri).resolve()
        if not path.is_relative_to(target):
            raise StoreError(f"{folder}: names a source outside of the folder, {source.uri!r}; nothing is written there")
        whole = folder / whole_path(source.source_id)
        raw = headers.get(source.source_id)
        if whole.exists():
            for ending in (".gz", ".bz2"):
                path = path.with_name(path.name.removesuffix(ending))
            with aside(path) as temporary:
                read_back(whole, temporary)
        elif raw:
            path = path.with_name(f"{path.name}.hdr")
            with aside(path) as temporary:
                temporary.write_bytes(b"".join(raw))
        else:
            continue
        written.append(path)
    return written
