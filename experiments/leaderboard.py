"""Every method through every metric, on images where the right answer is known and on CIFAR-10; CAMs at every stage.

    python -m experiments.leaderboard --data-dir DIR

It trains a small network on `jaxcam.data.shapes`, takes the bundled model for CIFAR-10, and trains a twin of each on
shuffled labels, for the label-randomisation test. Each row of the table is saved as soon as it is measured, so an
interrupted run goes on where it stopped. Writes metrics.json, table.md, table.csv and quality-against-cost.png.
"""

import csv
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _study
from jaxcam import data, metrics, plot, segments, train
from jaxcam.attribution import METHODS
from jaxcam.models.resnet import BasicBlock, ResNet

NORMALIZE = train.Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
# A row is a method, by default at the last stage, or "method@layer".
ROWS = [name for name, row in METHODS.items() if row.needs != "tokens" and row.gives != "parts"]
ROWS += [
    f"{name}@{layer}" for name in ("grad_cam", "hires_cam", "layer_cam") for layer in ("layer1", "layer2", "layer3")
]
OPTIONS = {  # where the defaults take a thousand forward passes and more
    "ss_cam": {"num_samples": 8, "max_channels": 32},
    "is_cam": {"max_channels": 32},
    "lime": {"num_samples": 256},
    "kernel_shap": {"num_samples": 256},
    "shapley_sampling": {"num_samples": 8},
    "sobol": {"num_samples": 16},
}
FORWARD = jax.jit(lambda model, images: model(images))
FEW = 8  # images for the metrics that run the method many times
DRAWS = {"random_cam": 10}  # one draw of random weights says little about random weights


@dataclass(frozen=True)
class Case:
    """One data set: a model, the images that it gets right, and what is known about them."""

    model: jaxcam.Tap
    images: jax.Array
    targets: jax.Array
    twin: jaxcam.Tap  # the same network trained on shuffled labels
    weights: str  # what they are, so that results of others are not taken for theirs
    masks: np.ndarray | None = None
    rerun: bool = True  # whether to measure what runs a method some twenty times


@dataclass(frozen=True)
class Row:
    """What the metrics of one method on one data set look at."""

    case: Case
    method: str
    explain: Any  # (model, images, targets, **options) -> heatmaps
    heatmaps: jax.Array
    reference: jax.Array  # Grad-CAM's heatmaps

    def faithful(self, metric, **options):
        return metric(self.case.model, self.case.images, self.heatmaps, self.case.targets, **options)

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
# Column, what is good, and how it is measured.
COLUMNS = [
    ("pointing game", HIGH, lambda row: row.localised(metrics.pointing_game)),
    ("energy pointing game", HIGH, lambda row: row.localised(metrics.energy_pointing_game)),
    ("relevance rank", HIGH, lambda row: row.localised(metrics.relevance_rank_accuracy)),
    ("relevance mass", DESCRIBES, lambda row: row.localised(metrics.relevance_mass_accuracy)),
    ("IoU with mask", HIGH, lambda row: row.localised(metrics.iou_with_mask)),
    ("deletion", LOW, lambda row: row.faithful(metrics.deletion, num_steps=16)),
    ("insertion", HIGH, lambda row: row.faithful(metrics.insertion, num_steps=16)),
    ("ROAD", HIGH, lambda row: row.faithful(metrics.road, fractions=(0.2, 0.4, 0.6, 0.8))),
    ("average drop", LOW, lambda row: row.faithful(metrics.average_drop)),
    ("average increase", HIGH, lambda row: row.faithful(metrics.average_increase)),
    ("average gain", HIGH, lambda row: row.faithful(metrics.average_gain)),
    ("infidelity", LOW, lambda row: row.faithful(metrics.infidelity, normalize=True, deviation=0.1, num_samples=16)),
    ("mu-fidelity", HIGH, lambda row: row.faithful(metrics.mu_fidelity, num_samples=48)),
    ("occlusion correlation", HIGH, lambda row: row.faithful(metrics.occlusion_correlation)),
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
    parser.add_argument("--images", type=int, default=32, help="explained images per data set")
    parser.add_argument("--methods", nargs="+", default=ROWS, choices=ROWS, metavar="NAME")
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
        args.images, args.epochs, args.twin_epochs, args.methods = 4, 1, 1, ["grad_cam@layer3", "saliency"]
        args.rerun_on = ["shapes"]
    cases = {"shapes": shapes_case(args), "cifar10": cifar10_case(args)}
    settings = {"images": args.images}
    rows = []
    with _study.progress() as progress:
        task = progress.add_task("", total=len(cases) * len(args.methods))
        for name, case in cases.items():
            reference = explain_with("grad_cam")(case.model, case.images, case.targets)
            for method in args.methods:
                progress.update(task, description=f"{name}: {method}")
                facts = {"options": OPTIONS.get(method), "draws": DRAWS.get(method), "rerun": case.rerun}
                facts |= {"weights": case.weights, **settings}
                values = _study.part(args, f"{name}-{method}", partial(measure, case, method, reference), **facts)
                rows.append({"data": name, "method": method, "values": values})
                progress.advance(task)
    # After everything else, so that nothing compiles in between.
    for row in rows:
        case, method = cases[row["data"]], row["method"]
        facts = {"options": OPTIONS.get(method), "weights": case.weights}
        row |= _study.part(args, f"{row['data']}-{method}-cost", partial(measure_cost, case, method), **facts)
    add_ranks(rows)
    _study.write_metrics(args, {"rows": rows})
    write_tables(args.output, rows)
    picture = quality_against_cost(rows)
    plot.save(picture, args.output / "quality-against-cost.png")
    print(f"{len(rows)} rows; written to {args.output}")


def explain_with(row, **options):
    """A row's method as `(model, images, targets, **options) -> heatmaps`."""
    name, _, layer = row.partition("@")
    method = partial(METHODS[name].function, **OPTIONS.get(name, {}), **options)

    def explain(model, images, targets, **more):
        # Not a new tap: that of a metric may do more, such as take a shift off the images.
        model = replace(model, layers=(layer,)) if layer else model
        wanted = partial(method, **more) if more else method
        return jaxcam.explain(model, images, targets, methods={name: wanted}, percentile=100)[name]

    return explain


def measure(case: Case, method: str, reference) -> dict:
    """`{metric: mean and interval over images}`; of a method with several draws also the means of all draws."""
    rows = []
    for draw in range(DRAWS.get(method, 1)):
        explain = explain_with(method, **({"key": jax.random.key(draw)} if method in DRAWS else {}))
        rows.append(Row(case, method, explain, explain(case.model, case.images, case.targets), reference))
    values = {}
    for column, _, function in COLUMNS:
        measured = [np.asarray(each) for each in map(function, rows) if each is not None]
        if measured:
            values[column] = _study.mean_and_interval(np.mean(measured, axis=0))
            if method in DRAWS:
                values[column]["draws"] = [float(np.nanmean(each)) for each in measured]
    return values


def measure_cost(case: Case, method: str) -> dict:
    """`{"passes": ...}`: a method's time over that of a forward pass of the same images.

    Medians of up to three runs in turn with forward passes; the first run compiles.
    """
    images, targets = case.images[:FEW], case.targets[:FEW]
    runs = {
        "forward": partial(FORWARD, case.model, images),
        "method": partial(explain_with(method), case.model, images, targets),
    }
    seconds = {run: [] for run in runs}
    while len(seconds["method"]) < 2 or (len(seconds["method"]) < 4 and sum(seconds["method"]) < 20):
        for run, function in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[run].append(time.perf_counter() - start)
    return {"passes": float(np.median(seconds["method"][1:]) / np.median(seconds["forward"][1:]))}


def shapes_case(args) -> Case:
    """A ResNet-18 of width 8, trained on which shapes are there, and the images in which it finds them all."""
    count = 256 if args.smoke else 6000
    depth = (1, 1, 1, 1) if args.smoke else (2, 2, 2, 2)
    module = ResNet(depth, BasicBlock, num_classes=len(data.SHAPES_LABELS), width=8, stem="cifar")
    training, test = data.shapes(count, seed=1), data.shapes(max(256, 4 * args.images), seed=2)
    there = {"train": training.masks.any((2, 3)), "test": test.masks.any((2, 3))}
    shuffled = np.random.default_rng(0).permutation(there["train"])
    total_steps = args.epochs * (count // 64)
    models = {}
    for name, labels in {"shapes": there["train"], "shuffled": shuffled}.items():
        state, history = train.fit(
            module,
            (training.images, distribution(labels)),
            (test.images, distribution(there["test"])),
            optimizer=train.sgd(train.cosine(0.1, total_steps)),
            num_epochs=args.epochs,
            normalize=NORMALIZE,
            batch_size=64,
            checkpoint_dir=args.output / "checkpoints" / name,
            progress=False,
        )
        print(f"{name}: {history[-1]['test_accuracy']:.1%} of the test images' predictions are in the image")
        models[name] = jaxcam.tap(module, state.variables, "layer4")
    images = NORMALIZE(jnp.asarray(test.images))
    logits = np.asarray(train.predict(module, models["shapes"].variables, test.images, normalize=NORMALIZE))
    found = np.array(
        [set(np.argsort(z)[-t.sum() :]) == set(np.flatnonzero(t)) for z, t in zip(logits, there["test"], strict=True)]
    )
    chosen = np.flatnonzero(found | args.smoke)[: args.images]
    masks = test.masks[chosen, test.labels[chosen]]
    return Case(
        models["shapes"],
        images[chosen],
        jnp.asarray(test.labels[chosen]),
        models["shuffled"],
        f"{args.epochs} epochs on {count} images",
        masks,
        "shapes" in args.rerun_on,
    )


def distribution(there):
    return (there / there.sum(1, keepdims=True)).astype(np.float32)


def cifar10_case(args) -> Case:
    """The bundled model, the first test images that it classifies correctly, and a twin that knows labels by heart."""
    classifier = jaxcam.load("resnet18_cifar10")
    training, test = _study.cifar10(args)
    count = 64 if args.smoke else 2560
    shuffled = np.random.default_rng(0).permutation(training.labels[:count])
    state, history = train.fit(
        classifier.module,
        (training.images[:count], shuffled),
        (test.images[:512], test.labels[:512]),
        optimizer=train.sgd(train.cosine(0.1, args.twin_epochs * (count // 64)), weight_decay=0),
        num_epochs=args.twin_epochs,
        normalize=train.Normalization(classifier.preprocess.mean, classifier.preprocess.std),
        batch_size=64,
        augment=False,
        checkpoint_dir=args.output / "checkpoints" / "cifar10-shuffled",
        progress=not args.smoke,
    )
    print(f"twin for CIFAR-10: {history[-1]['accuracy']:.1%} of {count} shuffled labels learned by heart")
    twin = jaxcam.tap(classifier.module, state.variables, classifier.layer)
    images = classifier.preprocess(test.images[: 4 * args.images])
    model = classifier.tap()
    right = np.argmax(model(images), -1) == test.labels[: len(images)]
    chosen = np.flatnonzero(right | args.smoke)[: args.images]
    targets, weights = jnp.asarray(test.labels[chosen]), classifier.about["sha256"]
    weights += f", twin of {args.twin_epochs} epochs on {count} images"
    return Case(model, images[chosen], targets, twin, weights, rerun="cifar10" in args.rerun_on)


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


def write_tables(folder, rows) -> None:
    """table.md, a table for each data set, best first; table.csv, everything with its interval."""
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        own = sorted((row for row in rows if row["data"] == name), key=lambda row: -row["rank"])
        columns = [(column, arrow) for column, (arrow, _), _ in COLUMNS if any(column in row["values"] for row in own)]
        lines += [
            f"## {name}",
            "",
            "| method | mean rank ↑ | forward passes | " + " | ".join(f"{c} {a}".strip() for c, a in columns) + " |",
        ]
        lines += ["|---|" + "--:|" * (2 + len(columns))]
        for row in own:
            cells = [f"{row['values'][column]['mean']:.3f}" for column, _ in columns]
            lines.append(f"| `{row['method']}` | {row['rank']:.2f} | {row['passes']:.1f} | " + " | ".join(cells) + " |")
        lines.append("")
    (folder / "table.md").write_text("\n".join(lines))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "method", "rank", "forward passes", "metric", "mean", "95 % interval"])
        for row in rows:
            for column, value in row["values"].items():
                numbers = [f"{each:.5g}" for each in (row["rank"], row["passes"])]
                measured = [f"{value['mean']:.5g}", f"{value['interval']:.5g}"]
                writer.writerow([row["data"], row["method"], *numbers, column, *measured])


def quality_against_cost(rows):
    points = {row["data"]: {} for row in rows}
    for row in rows:
        if "@" not in row["method"]:
            points[row["data"]][row["method"]] = row["passes"], row["rank"]
    return plot.scatter(points, xlabel="cost, forward passes", ylabel="quality, mean rank over the metrics", log_x=True)


if __name__ == "__main__":
    main()
