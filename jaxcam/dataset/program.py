"""What is computed for a batch: predictions, heatmaps and metrics, in one compiled program that serves all batches.

A `Work` says what; it is plain data and a model, so that it goes to other processes. `compiled` puts it on devices:
images are spread over them, weights lie on all of them, or stay where the caller has put them; nothing is sent between
devices. `described` is what must be the same for two runs to have the same result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._describe import name_of, plain
from jaxcam._engine import fitted
from jaxcam._errors import unknown
from jaxcam.attribution import METHODS
from jaxcam.explain import explain as explain_batch
from jaxcam.metrics import METRICS
from jaxcam.models import Classifier

DTYPES = ("float16", "float32", "uint8")
TOP = 5
BATCH = {True: 64, False: 16}  # images for each CPU, by whether they are small: what fits into its caches
ACCELERATED = 8  # times as many on anything else
SMALL = 64 * 64  # pixels


@dataclass(frozen=True, eq=False)
class Work:
    """What is computed for each image.

    Attributes:
      model: a tree of arrays that is a function of images: a tap.
      methods: options, or a function, by name, as `jaxcam.explain` takes them.
      metrics: options by name.
      target: `"predicted"`, `"label"` or a class.
      dtype: of the stored heatmaps.
    """

    model: Any
    methods: Mapping[str, Any]
    metrics: Mapping[str, Mapping]
    target: str | int
    dtype: str

    def __call__(self, model, images, labels) -> dict:
        """Of `images [n, h, w, c]` and `labels int[n]`: heatmaps under `"maps"`, and what goes into the table."""
        logits = model(images)
        if jnp.ndim(logits) != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"The model returns {jnp.shape(logits)}; a data set is explained with logits [n, k], k > 1."
            )
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        best = jnp.argsort(-probabilities, axis=-1)[:, :TOP]  # top_k would gather all images on each device
        top = jnp.take_along_axis(probabilities, best, axis=-1)
        prediction = best[:, 0]
        if self.target == "label":
            targets = jnp.where(labels < 0, prediction, labels)
        else:
            targets = prediction if isinstance(self.target, str) else jnp.full_like(prediction, self.target)
        maps = explain_batch(model, images, targets, methods=self.methods)
        values = {
            column(method, metric): METRICS[metric].function(
                *self._given(metric, model, images, each, targets), **options
            )
            for method, each in maps.items()
            for metric, options in self.metrics.items()
        }
        return {
            "prediction": prediction,
            "target": targets,
            "top5": best,
            "top5_probability": top,
            "metrics": values,
            "maps": {name: stored(each, self.dtype) for name, each in maps.items()},
        }

    def _given(self, metric: str, model, images, maps, targets) -> tuple:
        return (maps,) if METRICS[metric].needs == "map" else (model, images, maps, targets)


def column(method: str, metric: str) -> str:
    """What a metric of a method's heatmaps is called in the table."""
    return f"{method}_{metric}"


def stored(heatmaps, dtype: str):
    """Heatmaps in [0, 1] as they are kept; in 8 bits, 255 is 1, and what is no number is 0."""
    if dtype == "uint8":
        return jnp.round(255 * jnp.nan_to_num(heatmaps)).astype(jnp.uint8)
    return heatmaps.astype(dtype)


def work_of(model, *, methods, metrics=(), targets="predicted", dtype="float16", layer=None, labels=()) -> Work:
    """What is asked for, checked.

    Raises:
      TypeError: a model that is a bare function.
      ValueError: an unknown method, metric, target or dtype.
    """
    model = model.tap(layer) if isinstance(model, Classifier) else model
    leaves, structure = jax.tree.flatten(model)
    if jax.tree_util.treedef_is_leaf(structure) or not callable(model):
        raise TypeError(
            f"model is a {type(model).__name__}; it must be a classifier or a tap. A function of your own becomes one "
            "by jaxcam.tap(function, variables): a run that goes on must know that the weights are the same."
        )
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return Work(model, _methods(methods), _metrics(metrics), _target(targets, labels), dtype)


def _methods(methods) -> dict[str, Any]:
    if isinstance(methods, Mapping):
        methods = dict(methods)
    elif isinstance(methods, str) or callable(methods):
        raise TypeError(f"methods is {methods!r}; it must be a list of methods, such as ['grad_cam', 'saliency'].")
    else:
        methods = {
            each if isinstance(each, str) else name_of(each): {} if isinstance(each, str) else each for each in methods
        }
    for name, each in methods.items():
        if not callable(each) and name not in METHODS:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
        if not callable(each) and METHODS[name].on_host and "segments" not in each:
            raise ValueError(
                f"{name} looks at each image before anything is compiled, and a data set has one program for all; "
                f'give it segments of your own: methods={{"{name}": {{"segments": ...}}}}.'
            )
    if not methods:
        raise ValueError("No methods are given; choose some, such as ['grad_cam', 'saliency'].")
    return methods


def _metrics(metrics) -> dict[str, Mapping]:
    chosen: dict[str, Mapping] = dict(metrics) if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    able = [name for name, row in METRICS.items() if row.needs in ("map", "model") and not row.on_host]
    for name in chosen:
        if name not in METRICS:
            raise unknown("metric", name, able)
        if name not in able:
            raise ValueError(
                f"{name} needs more than an image and its heatmap, or looks at them on the host. For a data set there "
                f"are {', '.join(able)}."
            )
    return chosen


def _target(targets, labels: Sequence[str]) -> str | int:
    if targets in ("predicted", "label"):
        return targets
    if isinstance(targets, int | np.integer) or str(targets).isdecimal():
        return int(targets)
    if targets in labels:
        return list(labels).index(targets)
    raise ValueError(f'targets is {targets!r}; it must be "predicted", "label", or a class by its index or label.')


# --- On devices -------------------------------------------------------------------------------------------------------


def placed(model, devices: Sequence) -> tuple[Any, jax.sharding.Sharding, int]:
    """The model on its devices, where images go, and over how many devices they are spread.

    Weights that lie on a mesh stay there, and images are spread over those of its axes that no weight uses.
    """
    given = [leaf.sharding for leaf in jax.tree.leaves(model) if len(getattr(leaf, "devices", set)()) > 1]
    if given:
        mesh, used = given[0].mesh, {axis for each in given for axis in _axes(each.spec)}
        free = tuple(name for name in mesh.axis_names if name not in used)
        at = jax.NamedSharding(mesh, jax.P(free or None))
        everywhere = jax.NamedSharding(mesh, jax.P())
        model = jax.tree.map(lambda leaf: leaf if len(leaf.devices()) > 1 else jax.device_put(leaf, everywhere), model)
        return model, at, int(np.prod([mesh.shape[name] for name in free], dtype=int))
    mesh = jax.make_mesh((len(devices),), ("images",), (jax.sharding.AxisType.Auto,), devices=devices)
    model = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
    return model, jax.NamedSharding(mesh, jax.P("images")), len(devices)


def _axes(spec) -> list[str]:
    return [name for each in spec if each is not None for name in ((each,) if isinstance(each, str) else each)]


def compiled(work: Work, devices: Sequence | None = None) -> tuple[Callable, int]:
    """`(images, labels) -> results` on these devices (this process's, if none), and over how many images are spread."""
    model, at, spread = placed(work.model, jax.local_devices() if devices is None else list(devices))
    platform = next(iter(at.device_set)).platform
    step = fitted(work)

    def run(images, labels):
        return step(platform, model, *jax.device_put((images, labels), at))

    run.lower = lambda images, labels: step.lower(model, *jax.device_put((images, labels), at))
    return run, spread


def usual_batch(shape: Sequence[int], spread: int) -> int:
    """As many images as devices are busy with: more of small ones, and more where it is no CPU."""
    each = BATCH[shape[0] * shape[1] <= SMALL]
    return spread * each * (1 if jax.default_backend() == "cpu" else ACCELERATED)


def outline(work: Work, shape: Sequence[int], size: int) -> dict:
    """The shapes of what a batch gives, or the sentence of what is wrong; nothing is computed."""
    images = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
    return jax.eval_shape(work, work.model, images, jax.ShapeDtypeStruct((size,), jnp.int32))


# --- What must be the same --------------------------------------------------------------------------------------------


def described(work: Work) -> dict:
    """The work as JSON: what another run must have in common with this one."""
    return {
        "methods": {name: plain(each) for name, each in work.methods.items()},
        "metrics": {name: plain(options) for name, options in work.metrics.items()},
        "targets": work.target,
        "dtype": work.dtype,
    }
