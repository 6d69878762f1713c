"""What is on disk: one folder that any tool reads, written one range at a time, each whole or absent.

    OUT/manifest.json             what is computed, of what, with which versions
    OUT/maps/METHOD/              a zarr v3 array [images, h, w]; the shard `c.R.0.0` is range R
    OUT/table/R.parquet           a row for each image of the range
    OUT/done/R.json               written last: the range counts, and this is what its files must be

A range is a batch: one call of the compiled program, one shard, one part of the table, one record. No two writers share
a file, so whoever computes a range writes it, on any machine that sees the folder.
"""

import functools
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcam import _files

FORMAT = 1  # of the folder
CHUNK = 2**20  # bytes that are read for one heatmap, at most
MISSING = {"float16": "NaN", "float32": "NaN", "uint8": 0}
UNFINISHED = f".*{_files.UNFINISHED}"  # what a killed writer leaves


def start(folder: Path, manifest: dict, maps: Mapping[str, Any], *, resume: bool, allow: Sequence[str]) -> None:
    """Makes the folder ready for this run: a new one, or the rest of one that has begun.

    Raises:
      ValueError: the folder holds another run, or something else.
      OSError: it cannot be written.
    """
    place = folder / "manifest.json"
    if place.exists():
        if not resume:
            raise ValueError(
                f"'{folder}' holds a run already; choose another folder, or let it go on with resume=True."
            )
        found = read_manifest(folder)
        differing = list(_differences(_shown(found, allow), _shown(manifest, allow)))
        if differing:
            raise ValueError(f"'{folder}' holds another run: {'; '.join(differing)}. Choose another folder.")
    else:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"'{folder}' is a file; choose a folder for the results.")
        if folder.exists() and any(not each.match(UNFINISHED) for each in folder.iterdir()):
            raise ValueError(f"'{folder}' is not empty and holds no run; choose another folder.")
        _files.write(place, _json(manifest))
    _files.write(folder / "maps" / "zarr.json", _json({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    for name, each in maps.items():
        described = _metadata(manifest["images"], each.shape, str(each.dtype))
        _files.write(folder / "maps" / name / "zarr.json", _json(described))


def read_manifest(folder: Path) -> dict:
    manifest = None
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"'{folder}' holds no run: there is no manifest.json in it.") from None
    except ValueError:  # as what is no manifest
        pass
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"'{folder}/manifest.json' is no manifest of jaxcam, or is damaged.")
    return manifest


def _shown(manifest: dict, allow: Sequence[str]) -> dict:
    return {key: value for key, value in manifest.items() if key not in ("place", *allow)}


def _differences(before, now, name: str = "") -> Iterator[str]:
    """A part of a sentence for each value that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{name} {key}".strip())
    elif before != now:
        yield f"{name} was {_brief(before)} and is now {_brief(now)}"


def _brief(value) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] if len(text) == 64 else text[:80]  # enough of a sha256


def as_json(value):
    """A value as it comes back from a file, so that two of them can be compared."""
    return json.loads(json.dumps(value))


def _json(value) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _metadata(images: int, shape: Sequence[int], dtype: str) -> dict:
    """Of the zarr array of all heatmaps, of which a batch has `shape`; small chunks in a shard for each batch."""
    size, *space = shape
    each = int(np.prod(space)) * np.dtype(dtype).itemsize
    rows = max(rows for rows in range(1, size + 1) if size % rows == 0 and (rows == 1 or rows * each <= CHUNK))
    packed = {
        "cname": "zstd",
        "clevel": 1,
        "shuffle": "bitshuffle",
        "typesize": np.dtype(dtype).itemsize,
        "blocksize": 0,
    }
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {
        "chunk_shape": [rows, *space],
        "codecs": [plain, {"name": "blosc", "configuration": packed}],
        "index_codecs": [plain, {"name": "crc32c"}],
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [images, *space],
        "data_type": dtype,
        "fill_value": MISSING[dtype],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size, *space]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        "attributes": {},
    }


# --- A range ----------------------------------------------------------------------------------------------------------


def encoded(index: int, start: int, maps: Mapping[str, np.ndarray], size: int, table) -> dict[str, bytes]:
    """The files of a range: pure, so that two who compute the same range write the same bytes."""
    files = {}
    for name, each in maps.items():
        described = _metadata(start + len(each), (size, *each.shape[1:]), str(each.dtype))
        files[f"maps/{name}/{_key(index, each.ndim)}"] = _shard(json.dumps(described), index, start, each)
    files[f"table/{_number(index)}.parquet"] = _parquet(table)
    return files


def _shard(metadata: str, index: int, start: int, rows: np.ndarray) -> bytes:
    import tensorstore as ts

    described = json.loads(metadata)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "memory"},
        "metadata": {key: value for key, value in described.items() if key not in ("zarr_format", "node_type")},
        "store_data_equal_to_fill_value": True,  # so that every range has its file
    }
    array = ts.open(spec, create=True, context=ts.Context()).result()
    with ts.Transaction() as transaction:
        array.with_transaction(transaction)[start:].write(rows).result()
    files: Any = array.kvstore
    return files.read(_key(index, rows.ndim)).result().value


def _key(index: int, rank: int) -> str:
    return ".".join(["c", str(index), *["0"] * (rank - 1)])


def _number(index: int) -> str:
    return f"{index:08d}"


def _parquet(table) -> bytes:
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    return content.getvalue()


def commit(folder: Path, index: int, files: Mapping[str, bytes], errors: int) -> None:
    """Writes the files of a range, and then that it is done."""
    record = {name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in files.items()}
    for name, content in files.items():
        _files.write(folder / name, content)
    _files.write(_record(folder, index), _json({"range": index, "errors": errors, "files": record}))


def _record(folder: Path, index: int) -> Path:
    return folder / "done" / f"{_number(index)}.json"


def done(folder: Path, indices: Iterable[int]) -> dict[int, int]:
    """The ranges that are done and whole, with the number of their images that could not be read; warns of damage."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(functools.partial(_state, folder), indices)
        return {index: errors for index, errors in found if errors is not None}


def _state(folder: Path, index: int) -> tuple[int, int | None]:
    place = _record(folder, index)
    try:
        record = json.loads(place.read_bytes())
        damaged = next((name for name, each in record["files"].items() if not _is_whole(folder / name, each)), None)
        errors = int(record["errors"])
    except FileNotFoundError:
        return index, None
    except (ValueError, KeyError, TypeError, AttributeError):
        damaged = f"done/{place.name}"
    if damaged:
        warnings.warn(
            f"Range {index} is damaged: '{folder / damaged}' is not what was written. It is computed again.",
            stacklevel=2,
        )
        return index, None
    return index, errors


def _is_whole(path: Path, promised: dict) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != promised["bytes"]:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == promised["sha256"]
    except FileNotFoundError:
        return False


def tidy(folder: Path) -> None:
    """Takes away what killed writers have left, once nobody writes any more."""
    for path in folder.rglob(UNFINISHED):
        path.unlink(missing_ok=True)


# --- Results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """A folder of results, read when it is asked for.

    Attributes:
      folder: where they are.
      manifest: what was computed, of what, with which versions.
    """

    folder: Path
    manifest: dict

    def __repr__(self):
        """In a line, not setting by setting."""
        methods = ", ".join(self.manifest["settings"]["methods"])
        done = f"{len(self.ranges)} of {self.manifest['ranges']} ranges done"
        return f"Results('{self.folder}': {self.manifest['images']:,} images, {methods}, {done})"

    @functools.cached_property
    def maps(self) -> dict[str, Any]:
        """Heatmaps `[images, h, w]` by method, as lazy arrays: `np.asarray(results.maps["grad_cam"][10:12])`.

        NaN (in 8 bits 0) where an image could not be read or is not done yet.
        """
        import tensorstore as ts

        names = self.manifest["settings"]["methods"]
        place = str(self.folder.resolve() / "maps")
        spec = {name: {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/{name}/"}} for name in names}
        return {name: ts.open(each, open=True, read=True).result() for name, each in spec.items()}

    def table(self, columns: Sequence[str] | None = None):
        """A pyarrow table with a row for each image that is done, in the source's order; `.to_pandas()` if you like."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = [self.folder / "table" / f"{_number(index)}.parquet" for index in self.ranges]
        if not paths:
            raise ValueError(f"'{self.folder}' has no range that is done yet.")
        with ThreadPoolExecutor() as pool:
            return pa.concat_tables(pool.map(lambda path: pq.ParquetFile(path).read(columns=columns), paths))

    @property
    def ranges(self) -> list[int]:
        """The ranges that are done."""
        folder = self.folder / "done"
        return sorted(int(each.stem) for each in folder.glob("*.json") if each.stem.isdigit())

    @property
    def is_complete(self) -> bool:
        return len(self.ranges) == self.manifest["ranges"]

    def check(self) -> list[int]:
        """Reads every file and gives the ranges that are missing or damaged; warns of what is wrong with them.

        Example:
          >>> jaxcam.dataset.open("results").check()  # doctest: +SKIP
          []
        """
        every = range(self.manifest["ranges"])
        return sorted(set(every) - set(done(self.folder, every)))


def open(folder: str | os.PathLike) -> Results:
    """The results of a run, finished or not: lazy heatmaps, and a table with a row for each image.

    Raises:
      OSError: there is no run in the folder.
      ValueError: its manifest is damaged.

    Example:
      >>> results = jaxcam.dataset.open("results")  # doctest: +SKIP
      >>> np.asarray(results.maps["grad_cam"][:2]).shape, results.table().num_rows  # doctest: +SKIP
      ((2, 224, 224), 10000)
    """
    folder = Path(folder)
    return Results(folder, read_manifest(folder))
