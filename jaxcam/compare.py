"""Which method for this model? Every method through every metric, on one's own images, with what chance can explain.

A metric is one number for each image, so a method's mean has a bootstrap interval over the images; ranks are taken
within each resample, so that they have one too, and a method counts as worse only if it is so in nearly all of them.
The recommendation is the cheapest of the methods that the data cannot tell from the best.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam import _files, _progress
from jaxcam._checks import positive, prepare
from jaxcam._describe import digest, plain
from jaxcam._errors import shown, unknown
from jaxcam._scores import predicted
from jaxcam._typing import Images, Targets
from jaxcam.attribution import METHODS
from jaxcam.explain import explain, functions_of
from jaxcam.metrics import METRICS
from jaxcam.taps import Tap

# Of each idea one that takes some passes, and a map of random weights, which knows nothing.
CONTROL = "random_cam"
USUAL = ("grad_cam", "hires_cam", "layer_cam", "eigen_cam", "saliency", "smooth_grad", "integrated_gradients", "lrp")
USUAL_OF_TOKENS = "attention_relevance", "le_grad"  # beside those, of a vision transformer
USUAL_METRICS = ("deletion", "insertion", "road", "average_gain")
WITH_MASKS = ("pointing_game", "energy_pointing_game")
RESAMPLES, LEVEL = 2000, (2.5, 97.5)
SAME_COST = 1.25  # what is measured within a quarter is the same
TOGETHER = 8  # methods whose maps are judged at once where the forward passes are the same for all of them
FEWEST = 5  # images of which a bootstrap says something
GOOD = {"high": lambda mean: mean, "low": lambda mean: -mean, "near zero": lambda mean: -abs(mean)}


class Judge(NamedTuple):
    """A metric with its options.

    Attributes:
      function, needs, shares: as in the registry.
      better: `"high"`, `"low"`, `"near zero"`, or `"describes"` for what has no part in the ranks.
    """

    function: Callable
    needs: str
    better: str
    options: Mapping[str, Any]
    shares: bool = False


class Seen(NamedTuple):
    """What a metric may look at: some images, and what one method says of them."""

    model: Any
    twin: Any
    images: Any
    targets: Any
    masks: Any
    heatmaps: Any
    method: Callable | None  # (model, images, targets, **options) -> heatmaps


NEEDS = {
    "map": lambda seen: (seen.heatmaps,),
    "masks": lambda seen: (seen.heatmaps, seen.masks),
    "model": lambda seen: (seen.model, seen.images, seen.heatmaps, seen.targets),
    "batch": lambda seen: (seen.model, seen.images, seen.heatmaps),
    "explain": lambda seen: (lambda images: seen.method(seen.model, images, seen.targets), seen.images),
    "method": lambda seen: (seen.method, seen.model, seen.images, seen.targets),
    "twin": lambda seen: (seen.method, seen.model, seen.twin, seen.images, seen.targets),
}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, for `m` methods, `k` metrics and `n` images.

    Attributes:
      methods, metrics: their names.
      better: of each metric, as in `jaxcam.METRICS`.
      values: `float64[m, k, n]`, NaN where a metric is not defined.
      passes: what each method costs, in forward passes of the same images, `[m]`.
      seconds: the same in seconds for an image.
      errors: what stopped a method, by its name; such methods are not among `methods`.
    """

    methods: list[str]
    metrics: list[str]
    better: list[str]
    values: np.ndarray
    passes: np.ndarray
    seconds: np.ndarray
    errors: dict[str, str]

    def means(self) -> np.ndarray:
        """Each metric's mean and its 95 % bootstrap interval, `[m, k, 3]`."""
        return _with_interval(_mean(self.values), _resampled(self.values))

    def ranks(self) -> np.ndarray:
        """The mean rank over the judging metrics, from 0 (always worst) to 1 (always best), with interval, `[m, 3]`."""
        return _with_interval(self._ranks(_mean(self.values)), self._ranks(_resampled(self.values)))

    def candidates(self) -> list[str]:
        """The methods that the data cannot tell from the best one, best first."""
        rank, resampled = self._ranks(_mean(self.values)), self._ranks(_resampled(self.values))
        best = int(rank.argmax())
        behind = np.percentile(resampled[:, [best]] - resampled, LEVEL[0], axis=0)
        return [self.methods[i] for i in np.argsort(-rank, kind="stable") if i == best or behind[i] <= 0]

    def recommendation(self) -> str:
        """One sentence: which method to take, or that the data do not decide."""
        n, (best, *others) = self.values.shape[2], self.candidates()
        if n < FEWEST:
            return (
                f"The data do not decide: {n} image{'s' * (n > 1)} cannot tell methods apart; take at least {FEWEST}."
            )
        named = ", ".join(f"`{each}`" for each in others)
        if CONTROL in (best, *others) and len(self.methods) > 1:
            return (
                f"The data do not decide: `{CONTROL}`, which knows nothing of the class, cannot be told from the best "
                f"(`{best}`) on these {n} images; take more of them, or look at what the model has learnt."
            )
        passes = dict(zip(self.methods, self.passes, strict=True))
        # A map that is the same for every class is not taken for being cheap.
        fit = [best, *(each for each in others if each not in METHODS or METHODS[each].sees_class)]
        least = min(passes[each] for each in fit)
        taken = next(each for each in fit if passes[each] <= SAME_COST * least)
        cost = f"{passes[taken]:.1f} forward passes"
        if not others:
            return f"Take `{best}`: it is better than every other method on these {n} images, for {cost}."
        cheaper = "is cheaper" if len(fit) > len(others) else "knows the class and is cheaper"
        if taken == best:
            return f"Take `{best}`, for {cost}: the best, and none that cannot be told from it ({named}) {cheaper}."
        return (
            f"Take `{taken}`, for {cost}: on these {n} images it cannot be told from the best, `{best}`, and of the "
            f"{len(others) + 1} of which that is so none {cheaper}."
        )

    def table(self) -> str:
        """Markdown, best first: rank, cost, and the mean and interval of each metric."""
        arrows = {"high": " ↑", "low": " ↓", "near zero": " → 0", "describes": ""}
        titles = ["method", "mean rank ↑", "forward passes", "ms an image"]
        titles += [f"{name}{arrows[better]}" for name, better in zip(self.metrics, self.better, strict=True)]
        lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
        ranks, means = self.ranks(), self.means()
        for i in np.argsort(-ranks[:, 0], kind="stable"):
            cells = [
                f"`{self.methods[i]}`",
                _cell(ranks[i], 2),
                f"{self.passes[i]:.1f}",
                f"{1e3 * self.seconds[i]:.1f}",
            ]
            lines.append("| " + " | ".join([*cells, *(_cell(each, 3) for each in means[i])]) + " |")
        return "\n".join(lines)

    def _ranks(self, means):
        """Of means `[..., m, k]`: `[..., m]`. Values that differ by float32 rounding are the same."""
        judges = [i for i, better in enumerate(self.better) if better in GOOD]
        ranks = []
        for i in judges:
            values = GOOD[self.better[i]](means[..., i])
            values = np.where(np.isnan(values), -np.inf, values)  # what is not defined is no merit
            one, other = values[..., :, None], values[..., None, :]
            same = np.isclose(one, other, rtol=1e-4, atol=1e-6)
            ranks.append((~same & (one > other)).sum(-1) + 0.5 * (same.sum(-1) - 1))
        return np.mean(ranks, axis=0) / max(len(self.methods) - 1, 1)


def compare(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    methods: Iterable[str | Callable] | Mapping[str, Any] | None = None,
    metrics: Iterable[str] | Mapping[str, Any] | None = None,
    masks: Any = None,
    twin: Tap | Callable | None = None,
    batch_size: int = 16,
    output: str | Path | None = None,
    progress: bool | Callable[[str], None] = True,
) -> Comparison:
    """Which method should I use for my model? Methods through metrics, on one's own images, with intervals and costs.

    Each method explains the images, each metric judges the heatmaps, image by image; then methods are ranked within
    each metric, and the mean rank over the judging metrics says how good a method is: 1 if it is always the best.

    Args:
      model: a tap, or any callable `images -> output` for methods that need no activations.
      images: `float[n, *space, c]`, normalised as the model expects; five at least, better fifty.
      targets: `int[n]`, one class for all, or `None` for the predicted class.
      methods: as `jaxcam.explain` takes them; by default one of each idea, and `random_cam` as a control.
      metrics: names, as `jaxcam metrics` lists them; or a dict: options by name, `{"deletion": {"num_steps": 8}}`, and
        functions `(model, images, heatmaps, targets) -> float[n]` by names of your own, of which a high value is
        good, or `("low", function)`, `("near zero", function)`, `("describes", function)`. By default those of
        faithfulness that need few passes, and two of localization if there are masks.
      masks: `bool[n, *space]`, where the object is, for metrics of localization.
      twin: the same network with other weights, for `label_randomization`.
      batch_size: images at once.
      output: a folder, in which `METHOD.parquet` holds a row for each image. A method whose file is there, with the
        same model, images and settings (functions of your own by their names), is not measured again. Where a metric
        shares forward passes (`shares` in `jaxcam.metrics.METRICS`), files are written for eight methods at a time.
      progress: whether a bar counts the methods, if they take more than two seconds; or a function, which is called
        with the name of the method that comes next.

    Returns:
      A `Comparison`: values, means, ranks with intervals, costs, `table()` and `recommendation()`.

    Raises:
      ValueError: unknown methods or metrics, a metric that needs masks or a twin which are not given, no metric that
        judges, no method that ran.
      TypeError: methods or metrics that are none; an output for a model that is a bare function.

    Reference: the mean rank over metrics and images is that of Hedström et al. 2023, Quantus,
    https://arxiv.org/abs/2202.06861; percentile intervals are those of Efron and Tibshirani 1993, An Introduction to
    the Bootstrap.

    Example:
      >>> found = jaxcam.compare(model, images, methods=["grad_cam", "saliency"], metrics=["average_gain"])
      >>> found.recommendation()  # doctest: +ELLIPSIS
      'The data do not decide: ...'
    """
    positive(batch_size=batch_size)
    methods = _named(methods, model)
    judges = _judges(metrics, masks, twin)
    model, images, targets = prepare(model, images, targets)
    if targets is not None and targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}; to compare, give one class for each image.")
    if targets is None:
        targets = predicted(_batched(model, batch_size, images))
    masks = None if masks is None else jnp.asarray(masks)
    if output is not None and not all(map(_is_tree, (model, twin))):
        raise TypeError(
            "output is given, and the model is a bare function: what it closes over is not known, so a later run could "
            "take another's results for its own. Make it a tap, jaxcam.tap(function, variables), or leave output out."
        )
    folder = None if output is None else Path(output)
    about = {"model": _digest(model), "images": plain((images, targets, masks)), "twin": _digest(twin)}
    several = {key: _of_several(judge) for key, judge in judges.items() if judge.shares and isinstance(model, Tap)}
    alone = {key: judge for key, judge in judges.items() if key not in several}
    together = min(TOGETHER, len(methods)) if several else 1
    found, errors, settings, waiting = {}, {}, {}, {}

    def finish():
        """What judges the maps of several methods at once; then these methods' files."""
        for key, judge in several.items():
            # Always as many maps, so that nothing is compiled for the last ones alone.
            rows = np.minimum(np.arange(together), len(waiting) - 1)
            maps = np.stack(list(waiting.values()), 1)[:, rows]
            values = _batched(partial(judge, model), batch_size, images, targets, maps)
            for name, own in zip(waiting, values.T, strict=False):
                found[name].values[key] = np.asarray(own, np.float64)
        if folder is not None:
            for name in waiting:
                _write(folder / f"{name}.parquet", found[name], settings[name])
        waiting.clear()

    with _progress.shown("measuring methods", len(methods), enabled=progress is True) as advance:
        for name, method in methods.items():
            settings[name] = {
                **about,
                "method": plain(method),
                "metrics": {key: plain(each) for key, each in judges.items()},
            }
            known = None if folder is None else _read(folder / f"{name}.parquet", settings[name])
            if callable(progress):
                progress(name)
            if known is not None:
                found[name] = known
            else:
                try:
                    found[name], waiting[name] = _measure(
                        name, method, alone, model, twin, images, targets, masks, batch_size
                    )
                except (ValueError, TypeError, MemoryError, NotImplementedError) as error:
                    errors[name] = " ".join(str(error).split())
            if len(waiting) == together:
                finish()
            advance()
        if waiting:
            finish()
    if not found:
        raise ValueError(f"None of the methods could be run: {'; '.join(f'{k}: {v}' for k, v in errors.items())}")
    return Comparison(
        methods=list(found),
        metrics=list(judges),
        better=[judge.better for judge in judges.values()],
        values=np.array([[each.values[name] for name in judges] for each in found.values()], np.float64),
        passes=np.array([each.passes for each in found.values()]),
        seconds=np.array([each.seconds for each in found.values()]),
        errors=errors,
    )


class Measured(NamedTuple):
    """Of one method: each metric's values, and its cost."""

    values: dict[str, np.ndarray]
    passes: float
    seconds: float


def _of_several(judge: Judge) -> Callable:
    """The judge of `m` maps of each image at once, `[n, m, *space] -> [n, m]`, whose forward passes are run once."""

    @jax.jit
    def values(model, images, targets, maps):
        return jax.vmap(lambda each: _value(judge, Seen(model, None, images, targets, None, each, None)), 1, 1)(maps)

    return values


def _measure(name, method, judges, model, twin, images, targets, masks, batch_size) -> tuple[Measured, np.ndarray]:
    """What the judges say of the method's maps, each by itself, what it costs, and the maps."""

    def heatmaps(model, images, targets, **options):
        wanted = partial(method, **options) if options else method
        return explain(model, images, targets, methods={name: wanted}, percentile=100, progress=False)[name]

    def values(images, targets, masks=None):
        seen = Seen(model, twin, images, targets, masks, heatmaps(model, images, targets), heatmaps)
        alone = {key: _value(judge, seen) for key, judge in judges.items() if judge.needs != "batch"}
        return alone, seen.heatmaps

    arrays = (images, targets) if masks is None else (images, targets, masks)
    found, maps = _batched(values, batch_size, *arrays)
    seen = Seen(model, twin, images, targets, masks, maps, heatmaps)  # for what compares images
    found |= {key: _value(judge, seen) for key, judge in judges.items() if judge.needs == "batch"}
    few = slice(0, batch_size)
    seconds = _seconds(model, heatmaps, images[few], targets[few])
    numbers = {key: np.asarray(each, np.float64) for key, each in found.items()}
    return Measured(numbers, seconds[1] / seconds[0], seconds[1] / len(images[few])), maps


def _value(judge: Judge, seen: Seen):
    """Of each image; the mean over layers, and of a curve its value."""
    value = judge.function(*NEEDS[judge.needs](seen), **judge.options)
    return jnp.stack(list(value.values())).mean(0) if isinstance(value, dict) else getattr(value, "value", value)


def _seconds(model, method, images, targets) -> tuple[float, float]:
    """Medians of up to three runs in turn, all compiled already: of a forward pass, and of a method."""
    forward = _forward if isinstance(model, Tap) else lambda model, images: model(images)
    runs = [partial(forward, model, images), partial(method, model, images, targets)]
    jax.block_until_ready(runs[0]())
    seconds = [], []
    while not seconds[1] or (len(seconds[1]) < 3 and sum(seconds[1]) < 10):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken.append(time.perf_counter() - start)
    return float(np.median(seconds[0])), float(np.median(seconds[1]))


@jax.jit
def _forward(model, images):
    return model(images)


def _batched(function, size, *arrays):
    """`function` of so many rows at a time; the last ones are filled up, so that nothing is compiled for them alone."""
    n = len(arrays[0])
    size = min(size, n)
    parts = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        part = function(*(each[rows] for each in arrays))
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *each: np.concatenate(each)[:n], *parts)


def _named(methods, model) -> dict[str, Callable]:
    """The methods by name, with their options in them."""
    if methods is None:
        is_tap = isinstance(model, Tap)
        of_tokens = USUAL_OF_TOKENS if is_tap and model.reshape is not None else ()
        usual = (*USUAL, *of_tokens, CONTROL)
        methods = [name for name in usual if is_tap or METHODS[name].needs == "callable"]
    return {
        name: partial(method, **options) if options else method
        for name, (method, options) in functions_of(methods).items()
    }


def _judges(metrics, masks, twin) -> dict[str, Judge]:
    if metrics is None:
        metrics = USUAL_METRICS + (() if masks is None else WITH_MASKS)
    if isinstance(metrics, str) or callable(metrics):
        raise TypeError(
            f"metrics is {shown(repr(metrics))}; it must be a list of metrics, such as ['deletion', 'road']."
        )
    given = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    judges = {name: _judge(name, each) for name, each in given.items()}
    for name, judge in judges.items():
        if judge.needs not in NEEDS:
            raise ValueError(f"{name} looks at two maps, and says nothing about one method.")
        if judge.needs == "masks" and masks is None:
            raise ValueError(f"{name} needs masks: bool[n, *space], where the object is.")
        if judge.needs == "twin" and twin is None:
            raise ValueError(f"{name} needs twin: the same network with other weights.")
    if not any(judge.better in GOOD for judge in judges.values()):
        raise ValueError("None of the metrics says what is better; choose some such as deletion, insertion and road.")
    return judges


def _judge(name, given) -> Judge:
    if callable(given):
        given = ("high", given)
    if isinstance(given, tuple) and len(given) == 2 and callable(given[1]):
        if given[0] not in (*GOOD, "describes"):
            raise ValueError(
                f"{name} is better {shown(repr(given[0]))}; that must be one of {', '.join(GOOD)}, describes."
            )
        return Judge(given[1], "model", given[0], {})
    if not isinstance(given, Mapping):
        raise TypeError(f"The metric {name!r} is {shown(repr(given))}; it must be a function, or a dict of options.")
    if name not in METRICS:
        raise unknown("metric", name, METRICS, "`jaxcam metrics` lists them all.")
    row = METRICS[name]
    return Judge(row.function, row.needs, row.better, given, row.shares)


# --- Chance -----------------------------------------------------------------------------------------------------------


def _mean(values):
    """Over images, `[m, k, n] -> [m, k]`; what is not defined does not count."""
    counts = np.isfinite(values)
    return np.where(counts, values, 0).sum(-1) / np.where(counts.any(-1), counts.sum(-1), np.nan)


def _resampled(values):
    """The means of resamples of the images, the same for all methods and metrics: `[resamples, m, k]`."""
    n = values.shape[-1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    counts = np.isfinite(values)
    sums = np.einsum("rn,mkn->rmk", weights, np.where(counts, values, 0))
    totals = np.einsum("rn,mkn->rmk", weights, counts.astype(np.float64))
    return sums / np.where(totals, totals, np.nan)


def _with_interval(value, resampled):
    """`[..., 3]`: a value and its percentile interval."""
    defined = np.where(np.isnan(value), 0, resampled)
    return np.where(
        np.isnan(value)[..., None], np.nan, np.stack([value, *np.nanpercentile(defined, LEVEL, axis=0)], -1)
    )


def _cell(interval, digits: int) -> str:
    value, low, high = interval
    return "–" if math.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- Files ------------------------------------------------------------------------------------------------------------


def _is_tree(model) -> bool:
    return model is None or not jax.tree_util.all_leaves([model])


def _digest(model) -> str | None:
    return digest(model) if model is not None and _is_tree(model) else None


def _write(path: Path, measured: Measured, settings: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {"image": np.arange(len(next(iter(measured.values.values())))), **measured.values}
    about = {"settings": settings, "passes": measured.passes, "seconds": measured.seconds}
    table = pa.table(columns).replace_schema_metadata({"jaxcam": json.dumps(about)})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    _files.write(path, sink.getvalue().to_pybytes())


def _read(path: Path, settings: dict) -> Measured | None:
    """What a method's file holds, if it was measured so."""
    if not path.exists():
        return None
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
        about = json.loads(table.schema.metadata[b"jaxcam"])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        raise ValueError(f"'{path}' holds no comparison; choose another folder.") from None
    if about["settings"] != settings:
        return None
    values = {name: table[name].to_numpy() for name in table.column_names if name != "image"}
    return Measured(values, about["passes"], about["seconds"])
