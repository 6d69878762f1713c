"""Ranges, computed and written: a range is a pure function of the job and its number, whoever computes it.

While the devices compute a batch, Grain reads the next ones, one thread fetches results and another writes them. The
record of a range is written last, and only then is it given as done.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcam.dataset import program, read, store

COLUMNS = ("prediction", "target", "top5", "top5_probability")  # of the table, that every run has
AHEAD = 2  # batches that are computed before the first of them must be written


@dataclass(frozen=True, eq=False)
class Job:
    """All that a process must know to compute ranges; it can be pickled."""

    work: program.Work
    loader: read.Loader
    folder: Path
    workers: int = 0
    devices: Sequence | None = None


class Done(NamedTuple):
    """A range that was computed and written just now."""

    index: int
    images: int
    errors: int
    last_error: str | None
    waited: float  # seconds in which the devices had nothing to do before it, for want of images


def compute(job: Job, indices: Sequence[int], step: Callable | None = None) -> Iterator[Done]:
    """Computes and writes ranges, in order; gives each when its record is there. `step` is the compiled program."""
    if not indices:
        return
    step = step or program.compiled(job.work, job.devices)[0]
    free = None  # since when the devices have had nothing to do
    with ThreadPoolExecutor(1) as fetching, ThreadPoolExecutor(1) as writing:
        pending: deque = deque()
        for batch in read.batches(job.loader, indices, workers=job.workers):
            while len(pending) > AHEAD:
                yield pending.popleft().result()
            labels = np.full(len(batch.images), -1, np.int32)
            labels[: len(batch.labels)] = [-1 if each is None else each for each in batch.labels]
            begun = time.perf_counter()
            fetched = fetching.submit(_fetched, step(batch.images, labels))
            pending.append(writing.submit(_written, job, batch, fetched, free, begun))
            free = fetched
        while pending:
            yield pending.popleft().result()


def _fetched(results) -> tuple[Any, float]:
    jax.block_until_ready(results)
    ready = time.perf_counter()
    return jax.device_get(results), ready


def _written(job: Job, batch: read.Batch, fetched, before, begun: float) -> Done:
    results, _ = fetched.result()
    waited = 0.0 if before is None else max(0.0, begun - before.result()[1])
    files = range_files(batch, results, job.loader.size)
    wrong = [f"{name}: {error}" for name, error in zip(batch.names, batch.errors, strict=True) if error]
    store.commit(job.folder, batch.index, files, len(wrong))
    return Done(batch.index, len(batch.names), len(wrong), wrong[-1] if wrong else None, waited)


def range_files(batch: read.Batch, results: Mapping, size: int) -> dict[str, bytes]:
    """What a range's files hold: a function of its images and of the work alone."""
    count = len(batch.names)
    missing = np.array([error is not None for error in batch.errors])
    maps = {name: blanked(each[:count], missing) for name, each in results["maps"].items()}
    return store.encoded(batch.index, batch.start, maps, size, _table(batch, results, missing))


def blanked(values, missing: np.ndarray) -> np.ndarray:
    """The rows of images that could not be read say so: NaN, -1, or 0 in 8 bits."""
    rows = np.array(values)
    kinds = {"f": np.nan, "i": -1, "u": 0}
    rows[missing] = kinds[rows.dtype.kind]
    return rows


def _table(batch: read.Batch, results: Mapping, missing: np.ndarray):
    import pyarrow as pa

    count = len(batch.names)

    def present(values, kind):
        return pa.array([None if gone else each for each, gone in zip(values, missing, strict=True)], kind)

    def numbers(name, kind):
        return present(results[name][:count].tolist(), kind)

    columns = {
        "index": pa.array(range(batch.start, batch.start + count), pa.int64()),
        "file": pa.array(batch.names, pa.string()),
        "sha256": pa.array(batch.hashes, pa.string()),
        "label": pa.array(batch.labels, pa.int32()),
        "prediction": numbers("prediction", pa.int32()),
        "target": numbers("target", pa.int32()),
        "top5": numbers("top5", pa.list_(pa.int32())),
        "top5_probability": numbers("top5_probability", pa.list_(pa.float32())),
        **{name: present(each[:count].tolist(), pa.float32()) for name, each in results["metrics"].items()},
        "error": pa.array(batch.errors, pa.string()),
    }
    return pa.table(columns)
