"""Ray as an engine: its workers compute ranges, each of which writes its own; what a dead one had begun, another does.

`Explainer` is for those who have a Ray data set of their own: a class that `map_batches` takes, arrays in and arrays
out. `engine` is for `explain-dataset`: the numbers of the missing ranges are the data, so all that Ray carries is them.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxcam.dataset import program, ranges, read
from jaxcam.models import Classifier, load

RETRIES = 8  # of a task whose worker dies: perhaps it is the task that kills it
TOGETHER = 4  # ranges that a worker is given at once, so that it reads the next while it computes one


class Explainer:
    """Explains batches of pixels: `{"image": uint8[n, h, w, 3], ...}` in, predictions, metrics and heatmaps out.

    For Ray Data, or anything else that calls a function on batches. Images of different sizes come as an array of
    objects. Columns other than `image` are handed on; `label` is used where targets are labels.

    Args:
      model: a classifier, what `jaxcam.load` takes, or a tap with `preprocess`; a name is loaded by each worker.
      methods: names, or options by name, as `jaxcam.explain` takes them.
      metrics: names, or options by name; those that need a heatmap, or a model, an image and a heatmap.
      targets: `"predicted"`, `"label"`, or a class by its index or label.
      dtype: of the heatmaps: `"float16"`, `"float32"` or `"uint8"`.
      batch_size: rows of the one compiled program; batches are padded to it. By default the first batch's.
      preprocess: `[image, ...] -> float[n, h, w, c]` of PIL images; by default the classifier's.
      layer: the layer for the CAM methods; by default the classifier's.

    Returns:
      A dict of arrays with a row for each image: `prediction`, `target`, `top5`, `top5_probability`, a column
      `METHOD_METRIC` for each metric, the heatmaps under the methods' names, and `error`, empty where all is well.

    Raises:
      ValueError: a batch without images, or an argument that is not as it must be.

    Example:
      >>> explainer = Explainer("resnet18_cifar10", methods=["grad_cam"])
      >>> found = explainer({"image": np.zeros((2, 40, 60, 3), np.uint8), "path": np.array(["a", "b"])})
      >>> found["grad_cam"].shape, sorted(found)
      ((2, 32, 32), ['error', 'grad_cam', 'path', 'prediction', 'target', 'top5', 'top5_probability'])
    """

    def __init__(
        self,
        model,
        *,
        methods,
        metrics=(),
        targets: str | int = "predicted",
        dtype: str = "float16",
        batch_size: int | None = None,
        preprocess: Callable | None = None,
        layer: str | None = None,
    ):
        model = load(model) if isinstance(model, str) else model
        labels = model.labels if isinstance(model, Classifier) else ()
        preprocess = preprocess or getattr(model, "preprocess", None)
        if preprocess is None:
            raise ValueError("A tap does not say how images become its input; pass preprocess=.")
        self.preprocess = preprocess
        options = {"metrics": metrics, "targets": targets, "dtype": dtype, "layer": layer, "labels": labels}
        self.work = program.work_of(model, methods=methods, **options)
        self.size: Any = batch_size  # or that of the first batch
        self.step, self.spread = program.compiled(self.work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        if "image" not in batch:
            raise ValueError(f"The batch has no column 'image'; it has {', '.join(batch)}.")
        found = [read.pixels_of(each) for each in batch["image"]]
        arrays = read.prepared([image for image, _ in found], self.preprocess)
        items = [(pixels, error or said) for (_, error), (pixels, said) in zip(found, arrays, strict=True)]
        labels = np.asarray(batch.get("label", np.full(len(items), -1)), np.int32)
        self.size = self.size or len(items)
        parts = [
            self._part(items[s : s + self.size], labels[s : s + self.size]) for s in range(0, len(items), self.size)
        ]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rest = {name: each for name, each in batch.items() if name != "image"}
        return {**rest, **found, "error": np.array([error or "" for _, error in items], object)}

    def _part(self, items, labels) -> dict[str, np.ndarray]:
        """Of no more images than the program has rows."""
        padded = -(-self.size // self.spread) * self.spread
        images = np.zeros((padded, *read.shape_of(self.preprocess)), np.float32)
        known = np.full(padded, -1, np.int32)
        known[: len(labels)] = labels
        for row, (pixels, _) in enumerate(items):
            if pixels is not None:
                images[row] = pixels
        found = jax.device_get(self.step(images, known))
        columns = {**{name: found[name] for name in ranges.COLUMNS}, **found["metrics"], **found["maps"]}
        missing = np.array([pixels is None for pixels, _ in items])
        return {name: ranges.blanked(each[: len(items)], missing) for name, each in columns.items()}


class _Worker:
    """Computes and writes ranges; lives in a process of its own."""

    def __init__(self, job: ranges.Job):
        self.job, self.step = job, program.compiled(job.work)[0]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        done = list(ranges.compute(self.job, [int(each) for each in batch["range"]], self.step))
        columns = {name: [getattr(each, name) for each in done] for name in ranges.Done._fields}
        return {name: np.array(each, object if name == "last_error" else None) for name, each in columns.items()}


def engine(
    *,
    address: str | None = None,
    num_workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Callable[[ranges.Job, Sequence[int]], Iterator[ranges.Done]]:
    """What computes ranges on a Ray cluster: `(job, ranges) -> those that are done, as they come`.

    Args:
      address: of the cluster, such as `"auto"`; by default the one that is connected, else one on this machine.
      num_workers: by default one for each GPU, or two.
      num_cpus: of each worker.
      num_gpus: of each worker; by default one where the cluster has any.

    Raises:
      ValueError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise ValueError("The engine 'ray' needs Ray: pip install 'jaxcam-xai[ray]'.") from None

    def computed(job: ranges.Job, indices: Sequence[int]) -> Iterator[ranges.Done]:
        if not indices:
            return
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # the run has a bar of its own
        gpus = ray.cluster_resources().get("GPU", 0)
        workers = num_workers or int(gpus) or 2
        each: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus if num_gpus is not None else (1 if gpus else None),
        }
        # A worker that dies is started again, and what it had begun is given out again: a range is a pure function.
        kept: dict[str, Any] = {"max_restarts": -1, "max_task_retries": RETRIES}
        job = replace(job, folder=job.folder.resolve(), work=replace(job.work, model=jax.device_get(job.work.model)))
        blocks = -(-len(indices) // TOGETHER)
        rows = ray.data.from_items([{"range": index} for index in indices], override_num_blocks=blocks)
        rows.context.enable_progress_bars = False
        found = rows.map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=TOGETHER,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **{name: value for name, value in each.items() if value is not None},
            **kept,
        )
        try:
            for row in found.iter_rows():
                yield ranges.Done(**row)
        except ray.exceptions.RayError as error:
            lines = str(error).splitlines()
            said = next((each.strip() for each in reversed(lines) if re.match(r"\s*[\w.]*Error\b.*: ", each)), lines[0])
            raise ValueError(f"A worker of Ray failed: {said[:300]} What is done is kept in '{job.folder}'.") from error

    return computed
