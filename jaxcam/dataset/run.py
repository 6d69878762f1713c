"""A run: a manifest and a list of ranges, each a pure function of the two, of which some are done.

A range counts when its record is there, so to resume is to compute what has none. Engines (this process, one of
several, Ray) only decide who computes which range. What must be the same is in the manifest; what differs is refused.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcam._checks import positive
from jaxcam._describe import digest, plain
from jaxcam._errors import unknown
from jaxcam.dataset import program, ray, read, sources, store
from jaxcam.dataset.ranges import Job, compute
from jaxcam.image import Preprocess
from jaxcam.models import Classifier, load

VERSIONS = ("jaxcam-xai", "jax", "jaxlib", "flax", "numpy", "pillow", "tensorstore", "pyarrow")
ALLOWED = ("versions", "device")  # what may differ, if the user says so


class Progress(NamedTuple):
    """How far a run is: images done and in all, those of this call, errors, seconds, and the share spent waiting."""

    done: int
    total: int
    new: int
    errors: int
    seconds: float
    waiting: float


def explain(
    model,
    source,
    output: str | os.PathLike,
    *,
    methods,
    metrics=(),
    targets: str | int = "predicted",
    batch_size: int | None = None,
    dtype: str = "float16",
    resume: bool = True,
    preprocess: Callable | None = None,
    labels: Sequence[str] | None = None,
    layer: str | None = None,
    data_dir: str | None = None,
    max_errors: int | None = None,
    workers: int = 0,
    devices: Sequence | None = None,
    part: tuple[int, int] | None = None,
    allow: Sequence[str] = (),
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> store.Results:
    """Explains every image of a data set, on all devices; goes on where an earlier call was interrupted.

    A range (a batch) counts when its record is there, which is written last; killing the process at any moment loses
    the batches in flight and nothing else, and the finished folder is the same byte for byte. An image that cannot be
    read is a row with its error.

    Args:
      model: a classifier, what `jaxcam.load` takes, or a tap with `preprocess`.
      source: a folder, a tree with a folder for each class, a glob, a list of files (one in a line, its class behind a
        tab), `"tfds:NAME/SPLIT"`, or Parquet or ArrayRecord files of images.
      output: a folder, new or of the same run; `jaxcam.dataset.open` reads it.
      methods: names, or options by name, as `jaxcam.explain` takes them.
      metrics: names, or options by name; those that need a heatmap, or a model, an image and a heatmap.
      targets: `"predicted"`, `"label"` (where a row has none, the prediction), or a class by its index or label.
      batch_size: images computed at once, on all devices together; by default what keeps these devices busy.
      dtype: of the heatmaps on disk: `"float16"`, `"float32"`, or `"uint8"` with 255 for 1.
      resume: whether a run that has begun in `output` goes on; otherwise it is an error.
      preprocess: `[image, ...] -> float[n, h, w, c]` of PIL images; by default the classifier's.
      labels: the name of each class; by default the classifier's.
      layer: the layer for the CAM methods; by default the classifier's.
      data_dir: of TFDS.
      max_errors: so many images may be unreadable before the run stops; by default any number.
      workers: processes that read; 0 for threads of this one. A script needs `if __name__ == "__main__":` for them.
      devices: of this process; by default all.
      part: `(i, n)`: the i-th of n processes, which do their ranges each; by default JAX's.
      allow: `"versions"` or `"device"` may differ from those that the run began with; the last bits may, then, too.
      engine: `"local"`, or `"ray"`: workers on the machines of a Ray cluster, which all see `output` and `source`.
      engine_options: of Ray: `address`, `num_workers`, `num_cpus` and `num_gpus` of each.
      progress: is called after each range.

    Raises:
      ValueError: the output holds another run (and what differs), or an argument or the source is not as it must be.
      OSError: a file or folder is missing, or the output cannot be written. What is done is kept.

    Example:
      >>> run = {"methods": ["grad_cam"], "metrics": ["deletion"]}
      >>> jaxcam.dataset.explain("resnet18_cifar10", "tfds:cifar10/test", "out", **run)  # doctest: +SKIP
    """
    model = load(model) if isinstance(model, str | os.PathLike) else model
    if isinstance(model, Classifier):
        preprocess, labels = preprocess or model.preprocess, labels or model.labels
    if preprocess is None:
        raise ValueError(
            "A tap does not say how images become its input; pass preprocess=, such as a jaxcam.image.Preprocess."
        )
    _check(part, allow, engine, max_errors)
    options = {"metrics": metrics, "targets": targets, "dtype": dtype, "layer": layer, "labels": labels or ()}
    work = program.work_of(model, methods=methods, **options)
    job, manifest = _planned(
        work, sources.source_of(source, data_dir), preprocess, labels, Path(output), batch_size, workers, devices
    )
    manifest["place"] = _place(source, data_dir)
    size = manifest["settings"]["batch_size"]
    found = program.outline(work, read.shape_of(preprocess), size)
    store.start(job.folder, manifest, found["maps"], resume=resume, allow=allow)
    run_ranges = ray.engine(**(engine_options or {})) if engine == "ray" else compute
    place, of = (jax.process_index(), jax.process_count()) if part is None else part
    _run(job, range(place, manifest["ranges"], of), run_ranges, max_errors, progress)
    results = store.open(job.folder)
    if results.is_complete:
        store.tidy(job.folder)
    return results


def _check(part, allow, engine, max_errors) -> None:
    if part is not None and not (len(part) == 2 and 0 <= part[0] < part[1]):
        raise ValueError(f"part is {part!r}; it must be (i, n), the i-th of n processes, counted from 0.")
    for each in allow:
        if each not in ALLOWED:
            raise unknown("section that may differ", each, ALLOWED)
    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    if max_errors is not None and max_errors < 0:
        raise ValueError(f"max_errors is {max_errors}; it must be 0 or more.")


def _planned(work, source, preprocess, labels, folder, batch_size, workers, devices) -> tuple[Job, dict]:
    """The job, and the manifest that says what it is."""
    here = list(jax.local_devices() if devices is None else devices)
    shape, spread = read.shape_of(preprocess), program.placed(work.model, here)[2]
    if batch_size is None:
        batch_size = _begun(folder) or program.usual_batch(shape, spread)
    positive(batch_size=batch_size)
    classes = _classes(source.classes, labels)
    if work.target == "label" and not _has_labels(source):
        raise ValueError('targets is "label", and the source has no labels; explain what is predicted.')
    loader = read.Loader(source, preprocess, batch_size, -(-batch_size // spread) * spread, classes)
    about = preprocess.__dict__ if isinstance(preprocess, Preprocess) else plain(preprocess)
    manifest = {
        "format": store.FORMAT,
        "images": len(source),
        "ranges": -(-len(source) // batch_size),
        "place": None,
        "source": {"kind": source.kind, "sha256": source.digest()},
        "model": {
            "sha256": digest(work.model),
            "layers": getattr(work.model, "layers", ()),
            "preprocess": about,
        },
        "labels": labels,
        "settings": {**program.described(work), "batch_size": batch_size},
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "device": {"platform": here[0].platform, "kind": here[0].device_kind, "count": len(here)},
    }
    job = Job(work, loader, folder, workers, None if devices is None else here)
    return job, store.as_json(manifest)


def _begun(folder: Path) -> int | None:
    """The batch size of the run that is in a folder."""
    try:
        return store.read_manifest(folder)["settings"]["batch_size"]
    except (OSError, ValueError, KeyError):
        return None


def _place(source, data_dir: str | None) -> dict:
    """Where the images were, for the report; the same images at another place are the same run."""
    named = isinstance(source, str | os.PathLike)
    spec = os.fspath(source) if named else type(source).__name__
    if named and not spec.startswith("tfds:"):
        spec = os.path.abspath(os.path.expanduser(spec))
    return {"source": spec, "data_dir": data_dir and os.path.abspath(data_dir)}


def _has_labels(source) -> bool:
    return source.read([0])[0].label is not None


def _classes(given: Sequence[str] | None, labels: Sequence[str] | None) -> tuple[int | None, ...] | None:
    """The model's class for each of the source's: by name, or in order where there are as many."""
    if given is None or not labels:
        return None
    lowered = [each.lower() for each in labels]
    if all(each.lower() in lowered for each in given):
        return tuple(lowered.index(each.lower()) for each in given)
    if len(given) == len(labels):
        return None  # in order, as ImageNet's folders are
    return (None,) * len(given)  # other classes than the model's


def _run(job: Job, indices: Sequence[int], run_ranges, max_errors, progress) -> None:
    """Computes those of the ranges that are not done, whatever engine it is that does."""
    size, total = job.loader.size, len(job.loader.source)
    images = {index: min(size, total - index * size) for index in indices}
    before = store.done(job.folder, indices)
    count, errors = sum(images[index] for index in before), sum(before.values())
    new, waited, since = 0, 0.0, time.perf_counter()

    def tell():
        seconds = time.perf_counter() - since
        if progress is not None:
            progress(Progress(count + new, sum(images.values()), new, errors, seconds, waited / max(seconds, 1e-9)))

    tell()
    for each in run_ranges(job, [index for index in indices if index not in before]):
        new, waited, errors = new + each.images, waited + each.waited, errors + each.errors
        tell()
        if max_errors is not None and errors > max_errors:
            raise ValueError(
                f"{errors} images could not be read, which is more than max_errors={max_errors}; the last of them: "
                f"{each.last_error} What is done is kept in '{job.folder}'."
            )
