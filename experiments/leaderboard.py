"""Every method through every metric, on images where the right answer is known and on CIFAR-10; CAMs at earlier stages.

    python -m experiments.leaderboard --data-dir DIR [--photos DIR]

Three data sets. On `jaxcam.data.shapes` it trains a small network; on CIFAR-10 it takes the bundled model; of each it
trains a twin on shuffled labels, for the label-randomisation test. The photographs are the pointing game's trick: two
objects, cut out by hand, on a third photograph, for EfficientNet-Lite0 (`_pasted`; scikit-image ships five of the
photographs, the committed run has four more by `--photos`: dog-and-cat.png, dog-cat-small.jpg, horses.jpg, swan.jpg).

Each row of the table is saved as soon as it is measured, so an interrupted run goes on where it stopped, and `--data`
measures some of the data sets and keeps the others' rows. Writes metrics.json, table.md, table.csv,
quality-against-cost.png and pasted.jpg.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _cases, _leaders, _report, _study
from experiments._cases import Case
from jaxcam import metrics, plot, segments
from jaxcam.attribution import METHODS

# A row is a method, by default at the last stage, or "method@layer".
NAMES = [name for name, row in METHODS.items() if row.needs != "tokens" and row.gives != "parts"]
EARLIER = ("grad_cam", "hires_cam", "layer_cam")
FORWARD = jax.jit(lambda model, images: model(images))
FEW = 8  # images for the metrics that run the method many times
CASES = {"shapes": _cases.shapes_case, "cifar10": _cases.cifar10_case, "photographs": _cases.photographs_case}


@dataclass(frozen=True)
class Row:
    """What the metrics of one method on one data set look at."""

    case: Case
    method: str
    explain: Any  # (model, images, targets, **options) -> heatmaps
    heatmaps: jax.Array
    reference: jax.Array  # Grad-CAM's heatmaps

    def faithful(self, metric, *, long=False, **options):
        if self.case.large and long:
            return None
        return metric(self.case.model, self.case.images, self.heatmaps, self.case.targets, **options)

    @property
    def steps(self):
        return 8 if self.case.large else 16

    @property
    def fractions(self):
        return (0.4,) if self.case.large else (0.2, 0.4, 0.6, 0.8)

    def localised(self, metric):
        return None if self.case.masks is None else metric(self.heatmaps, self.case.masks)

    def alike(self, metric):
        return metric(self.heatmaps, self.reference)

    def sanity(self, metric, **options):
        few = self.case.images[:FEW], self.case.targets[:FEW]
        return metric(self.explain, self.case.model, *few, **options) if self.case.rerun else None

    def all_layers(self, metric):
        """The mean over layers of the similarity to the map of the trained model."""
        values = self.sanity(metric)
        return None if values is None else jnp.stack(list(values.values())).mean(0)

    def other_labels(self):
        def metric(explain, model, images, targets):
            return metrics.label_randomization(explain, model, self.case.twin, images, targets)

        return self.sanity(metric)

    def sensitivity(self):
        def metric(explain, model, images, targets):
            # The images change inside a compiled loop, where xrai cannot see them: it keeps the segments they have now.
            options = {"segments": segments.felzenszwalb(images)} if self.method == "xrai" else {}
            return metrics.max_sensitivity(
                lambda images: explain(model, images, targets, **options), images, num_samples=4
            )

        return self.sanity(metric)


# What of a mean is high where the explanation is good, and the arrow that says so.
HIGH, LOW, ZERO = ("↑", float), ("↓", lambda mean: -mean), ("→ 0", lambda mean: -abs(mean))
DESCRIBES = ("", None)  # it does not judge, or says the same as another column
INFIDELITY = {"normalize": True, "deviation": 0.1, "num_samples": 16}
# Column, what is good, and how it is measured.
COLUMNS = [
    ("pointing game", HIGH, lambda row: row.localised(metrics.pointing_game)),
    ("energy pointing game", HIGH, lambda row: row.localised(metrics.energy_pointing_game)),
    ("relevance rank", HIGH, lambda row: row.localised(metrics.relevance_rank_accuracy)),
    ("relevance mass", DESCRIBES, lambda row: row.localised(metrics.relevance_mass_accuracy)),
    ("IoU with mask", HIGH, lambda row: row.localised(metrics.iou_with_mask)),
    ("deletion", LOW, lambda row: row.faithful(metrics.deletion, num_steps=row.steps)),
    ("insertion", HIGH, lambda row: row.faithful(metrics.insertion, num_steps=row.steps)),
    ("ROAD", HIGH, lambda row: row.faithful(metrics.road, fractions=row.fractions)),
    ("average drop", LOW, lambda row: row.faithful(metrics.average_drop)),
    ("average increase", HIGH, lambda row: row.faithful(metrics.average_increase)),
    ("average gain", HIGH, lambda row: row.faithful(metrics.average_gain)),
    ("infidelity", LOW, lambda row: row.faithful(metrics.infidelity, long=True, **INFIDELITY)),
    ("mu-fidelity", HIGH, lambda row: row.faithful(metrics.mu_fidelity, long=True, num_samples=48)),
    ("occlusion correlation", HIGH, lambda row: row.faithful(metrics.occlusion_correlation, long=True)),
    ("max-sensitivity", LOW, Row.sensitivity),
    ("cascading randomisation", ZERO, lambda row: row.all_layers(metrics.cascading_randomization)),
    ("independent randomisation", ZERO, lambda row: row.all_layers(metrics.independent_randomization)),
    ("label randomisation", ZERO, Row.other_labels),
    ("input invariance", HIGH, lambda row: row.sanity(metrics.input_invariance)),
    ("Gini", DESCRIBES, lambda row: metrics.gini(row.heatmaps)),
    ("entropy", DESCRIBES, lambda row: metrics.entropy(row.heatmaps)),
    ("effective area", DESCRIBES, lambda row: metrics.effective_area(row.heatmaps)),
    ("Pearson to Grad-CAM", DESCRIBES, lambda row: row.alike(metrics.pearson)),
    ("Spearman to Grad-CAM", DESCRIBES, lambda row: row.alike(metrics.spearman)),
    ("IoU to Grad-CAM", DESCRIBES, lambda row: row.alike(metrics.iou_top)),
    ("SSIM to Grad-CAM", DESCRIBES, lambda row: row.alike(metrics.ssim)),
    ("cosine to Grad-CAM", DESCRIBES, lambda row: row.alike(metrics.cosine)),
]


def main(argv=None):
    parser = _study.arguments("leaderboard", __doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="explained images of shapes and of CIFAR-10")
    parser.add_argument("--pasted-images", type=int, default=12, help="explained photographs, at most")
    parser.add_argument("--photos", type=Path, help="folder with more photographs to paste from, and on")
    parser.add_argument(
        "--data", nargs="+", default=list(CASES), choices=CASES, help="what to measure; the rest is kept"
    )
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--epochs", type=int, default=8, help="of training on shapes")
    parser.add_argument("--twin-epochs", type=int, default=40, help="of learning shuffled labels of CIFAR-10")
    parser.add_argument(
        "--rerun-on",
        nargs="*",
        default=["shapes", "cifar10"],
        choices=["shapes", "cifar10"],
        help="data sets on which to measure sanity and max-sensitivity, which run a method some twenty times",
    )
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.epochs, args.twin_epochs, args.methods = 4, 1, 1, ["saliency"]
        args.rerun_on = ["shapes"]
    if "photographs" in args.data and not _cases.can_paste(args.photos):
        print("Without scikit-image there are no photographs to paste; that data set is left out.")
        args.data = [name for name in args.data if name != "photographs"]
    rows, runs = kept(args)
    for name in args.data:
        case = CASES[name](args)
        rows += measure_all(args, name, case)
        # The settings are those of this run, which other data sets' rows in the same file may not have had.
        runs[name] = {"images": len(case.images), "settings": _study.settings(args), **_study.environment()}
        if name == "photographs":
            pasted_picture(args, case)
    rows.sort(key=lambda row: list(CASES).index(row["data"]))
    add_ranks(rows)
    _study.write_metrics(args, {"rows": rows, "runs": runs})
    _leaders.write_tables(args.output, rows, runs, COLUMNS)
    plot.save(_leaders.quality_against_cost(rows), args.output / "quality-against-cost.png")
    if not args.smoke:
        _report.publish(args, "leaderboard", **_leaders.page(rows, runs))
    print(f"{len(rows)} rows; written to {args.output}")


def kept(args) -> tuple[list, dict]:
    """The rows of an earlier run for the data sets that are not measured now, and what is known of that run."""
    path = args.output / "metrics.json"
    if set(args.data) == set(CASES) or not path.exists():
        return [], {}
    found = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["data"] not in args.data]
    whole = {key: found[key] for key in ("settings", "device", "versions")}
    return rows, {row["data"]: {**found.get("runs", {}).get(row["data"], whole), "kept": True} for row in rows}


def measure_all(args, name: str, case: Case) -> list[dict]:
    """A row for each method, and for some at earlier layers."""
    names = [each for each in args.methods if not (case.large and each in TOO_LONG)]
    methods = names + [f"{each}@{layer}" for each in EARLIER if each in names for layer in case.layers]
    if args.smoke:
        methods = [*args.methods, "grad_cam@layer3"] if name == "photographs" else args.methods
    reference = explain_with("grad_cam", case)(case.model, case.images, case.targets)
    rows = []
    with _study.progress() as progress:
        for method in progress.track(methods, description=name):
            facts = {"options": case.options.get(method), "draws": case.draws if method in DRAWN else None}
            facts |= {"rerun": case.rerun, "weights": case.weights, "images": len(case.images)}
            found = _study.part(args, f"{name}-{method}", partial(measure, case, method, reference), **facts)
            rows.append({"data": name, "method": method, **found})
            print(f"{name}: {method}", flush=True)
    return rows


@cache
def explain_with(row, case, draw=None):
    """A row's method as `(model, images, targets, **options) -> heatmaps`; the same each time, compiled once."""
    name, _, layer = row.partition("@")
    key = {} if draw is None else {"key": jax.random.key(draw)}
    method = partial(METHODS[name].function, **case.options.get(name, {}), **key)

    def explain(model, images, targets, **more):
        # Not a new tap: that of a metric may do more, such as take a shift off the images.
        model = replace(model, layers=(layer,)) if layer else model
        wanted = partial(method, **more) if more else method
        return jaxcam.explain(model, images, targets, methods={name: wanted}, percentile=100)[name]

    return explain


PICTURED = ["grad_cam", "guided_grad_cam", "rise", "eigen_cam", "integrated_gradients", "saliency"]
TOO_LONG = ("guided_integrated_gradients",)  # for large images: many minutes, however few its steps
DRAWN = ("random_cam",)  # measured for several draws of its weights


def measure(case: Case, method: str, reference) -> dict:
    """`{"values": {metric: mean and interval over images}, "passes": ...}`; of several draws also each one's means."""
    rows = []
    for draw in range(case.draws) if method in DRAWN else [None]:
        explain = explain_with(method, case, draw)
        rows.append(Row(case, method, explain, explain(case.model, case.images, case.targets), reference))
    values = {}
    for column, _, function in COLUMNS:
        measured = [np.asarray(each) for each in map(function, rows) if each is not None]
        if measured:
            values[column] = _study.mean_and_interval(np.mean(measured, axis=0))
            if method in DRAWN:
                values[column]["draws"] = [float(np.nanmean(each)) for each in measured]
    return {"values": values, "passes": cost(case, rows[0].explain)}


def cost(case: Case, explain) -> float:
    """A method's time over that of a forward pass of the same images, medians of up to three runs in turn.

    Both are compiled already: the method has made its heatmaps, and the first forward pass is not counted.
    """
    runs = {"forward": partial(FORWARD, case.model, case.images)}
    jax.block_until_ready(runs["forward"]())
    runs["method"] = partial(explain, case.model, case.images, case.targets)
    seconds = {run: [] for run in runs}
    while not seconds["method"] or (len(seconds["method"]) < 3 and sum(seconds["method"]) < 10):
        for run, function in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[run].append(time.perf_counter() - start)
    return float(np.median(seconds["method"]) / np.median(seconds["forward"]))


def pasted_picture(args, case) -> None:
    few = slice(0, 6)
    methods = [name for name in PICTURED if name in args.methods]
    maps = {name: explain_with(name, case)(case.model, case.images, case.targets)[few] for name in methods}
    # To be seen, not measured: few pixels of an attribution are far above all others.
    brightest = {name: np.quantile(each, 0.99, axis=(1, 2), keepdims=True) for name, each in maps.items()}
    maps = {name: np.clip(each / np.maximum(brightest[name], 1e-9), 0, 1) for name, each in maps.items()}
    _leaders.pasted_picture(args.output / "pasted.jpg", case.views[few], case.masks[few], maps, case.labels[few])


def add_ranks(rows) -> None:
    """Each row's mean rank over the judging metrics of its data set, from 0 (always worst) to 1 (always best).

    Values that differ by float32 rounding are the same.
    """
    for name in {row["data"] for row in rows}:
        own = [row for row in rows if row["data"] == name]
        ranks = []
        for column, (_, good), _ in COLUMNS:
            if good and all(column in row["values"] for row in own):
                values = np.array([good(row["values"][column]["mean"]) for row in own])
                same = np.isclose(values[:, None], values, rtol=1e-4, atol=1e-6)
                below = (~same & (values[:, None] > values)).sum(1) + 0.5 * (same.sum(1) - 1)
                ranks.append(below / max(len(own) - 1, 1))
        for row, rank in zip(own, np.mean(ranks, axis=0), strict=True):
            row["rank"] = float(rank)


if __name__ == "__main__":
    main()
