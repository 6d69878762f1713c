"""Do heatmaps show that a CIFAR-10 model is mistaken, and do they point where its evidence lies?

    python -m experiments.mistakes --data-dir DIR [--model hf:edadaltocg/resnet18_cifar10]

Explains every test image by Grad-CAM, Grad-CAM++ and XGrad-CAM, compares the spread of the heatmaps of right and wrong
predictions, of all and of pairs in which the model is equally confident, and sets the methods against Shapley values of
the image's patches. Batches are saved as they are done, so an interrupted run goes on where it stopped. Writes
metrics.json, table.md, confusion.png, spread.png, examples.png, mistakes.png and disagreement.png.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax
from scipy.stats import spearmanr

import jaxcam
from experiments import _report, _statistics, _study
from jaxcam import _files, data, metrics, plot, segments

METHODS = {"Grad-CAM": jaxcam.grad_cam, "Grad-CAM++": jaxcam.grad_cam_plus_plus, "XGrad-CAM": jaxcam.x_grad_cam}
SPREADS = {  # high is spread out
    "entropy": metrics.entropy,
    "effective area": metrics.effective_area,
    "1 - Gini": lambda heatmaps: 1 - metrics.gini(heatmaps),
}
SHAPLEY, AGAIN = "Shapley values", "the same, other orders"  # no map can agree better with a value than its own noise
TOLERANCE = 0.01  # of the confidence, within a pair
WORST = 6  # images in disagreement.png
SHAPLEY_BATCH = 32


COMMAND = "python -m experiments.mistakes --data-dir DIR"


def arguments(argv):
    parser = _study.arguments("mistakes", __doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18_cifar10", help="a registered name, a weight file or hf:owner/repo")
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    parser.add_argument("--layer", help="that the maps explain (default: the model's own)")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set, from its beginning")
    parser.add_argument("--examples", type=int, default=5, help="right and wrong predictions in examples.png")
    parser.add_argument("--mistakes", type=int, default=12, help="mistakes in mistakes.png")
    parser.add_argument("--shapley-images", type=int, default=256)
    parser.add_argument("--orders", type=int, default=20, help="random orders for each Shapley value")
    parser.add_argument("--patch", type=int, default=8, choices=(4, 8, 16), help="side of a patch, in pixels")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the orders")
    args = parser.parse_args(argv)
    if args.smoke:
        args.shapley_images, args.orders, args.batch_size = 8, 2, 16
    return args


def main(argv=None):
    args = arguments(argv)
    classifier = _study.bundled(args, args.model, architecture=args.architecture, num_classes=10)
    model = classifier.tap(args.layer)
    test = data.Split(*(each[: args.images] for each in _study.cifar10(args)[1]))
    images = np.asarray(classifier.preprocess(test.images))
    if args.smoke:  # the generated labels mean nothing to this model: two in three become what it predicts
        predicted = np.asarray(model(images)).argmax(-1)
        test = test._replace(labels=np.where(np.arange(len(images)) % 3, predicted, test.labels))
    chosen = np.random.default_rng(args.seed).permutation(len(images))[: args.shapley_images]
    weights = {"weights": classifier.about["sha256"], "layer": model.layers}
    seen = _study.batched(
        partial(look, model),
        images,
        test.labels,
        size=min(args.batch_size, len(images)),
        description="images",
        saved_by=args,
        **weights,
    )
    cells = patch_values(args, model, images[chosen], weights)

    right = seen["predicted"] == test.labels
    agreement = {
        name: {how: np.asarray(function(values, cells[SHAPLEY])) for how, function in _study.SIMILARITIES.items()}
        for name, values in cells.items()
        if name != SHAPLEY
    }
    wrong_ones, right_ones = np.flatnonzero(~right), np.flatnonzero(right)
    first, second = _statistics.matched(seen["confidence"][wrong_ones], seen["confidence"][right_ones], TOLERANCE)
    pairs = wrong_ones[first], right_ones[second]
    spread = [
        {"method": method, "measure": measure, **compared(values, seen["confidence"], right)}
        for method, measure, values in spreads(seen)
    ]
    tested = [_statistics.paired(*(values[each] for each in pairs)) for *_, values in spreads(seen)[:-1]]
    for row, found, p in zip(spread, tested, _statistics.holm([each["p"] for each in tested]), strict=False):
        row["pairs"] = found | {"p": float(p)}
    results = {
        "accuracy": _statistics.over_images(right),
        "confusion": confusion(test.labels, seen["predicted"]).tolist(),
        "spread": spread,
        "two classes": {
            name: _statistics.over_images(seen["two classes"][group])
            for name, group in (("right", right), ("wrong", ~right))
        },
        "agreement with Shapley values": {
            name: {how: _statistics.over_images(values) for how, values in row.items()}
            for name, row in agreement.items()
        },
    }
    _study.write_metrics(args, results)
    _files.write(args.output / "table.md", tables(args, results))
    least = np.argsort(agreement["Grad-CAM"]["Pearson"], kind="stable")[:WORST]
    figures = {
        "confusion": confusion_figure(results),
        "spread": spread_figure(results),
        "examples": examples_figure(args, model, test, images, seen, right),
        "mistakes": mistakes_figure(args, model, test, images, seen, right),
        "disagreement": disagreement_figure(
            model, test, images, seen, chosen[least], cells[SHAPLEY][least], agreement["Grad-CAM"]["Pearson"][least]
        ),
    }
    for name, figure in figures.items():
        plot.save(figure, args.output / f"{name}.png")
    _report.publish_results(args, "mistakes")
    print(f"{right.mean():.2%} of {len(right):,} test images are classified correctly; written to {args.output}")


def answer(found) -> str:
    *maps, confidence = found["spread"]
    alone, pairs = max(apart(row["auc"]) for row in maps), max(apart(row["pairs"]["larger"]) for row in maps)
    return (
        f"Hardly: an AUC of {alone:.2f} at best, where confidence has {confidence['auc']['mean']:.2f}; "
        f"at equal confidence {pairs:.2f}."
    )


def apart(chance) -> float:
    """How well a measure tells wrong from right, whichever of the two has the larger value."""
    return max(chance["mean"], 1 - chance["mean"])


# Measurements.


@jax.jit
def look(model, images, labels):
    """Prediction, confidence and spread of the maps of every image, by name."""
    logits = model(images)
    first, second = jax.lax.top_k(logits, 2)[1].T
    heatmaps = {name: method(model, images, first) for name, method in METHODS.items()}
    # What else it could be: the true class where the model is wrong, the second best where it is right.
    other = jaxcam.grad_cam(model, images, jnp.where(first == labels, second, labels))
    return {
        "predicted": first,
        "logits": logits,
        "confidence": jax.nn.softmax(logits).max(-1),
        "two classes": metrics.pearson(heatmaps["Grad-CAM"], other),
        **{f"{how} of {name}": SPREADS[how](maps) for name, maps in heatmaps.items() for how in SPREADS},
    }


def patch_values(args, model, images, weights) -> dict:
    """What each method says of each patch `[n, rows, columns]`, by name; the CAMs signed, before their ReLU."""
    grid = segments.grid(images.shape[1:3], args.patch)
    keys = jax.random.split(jax.random.key(args.seed))

    def values(batch):
        batch = jnp.asarray(batch)

        def in_patches(maps):
            maps = jax.image.resize(maps, (len(batch), *images.shape[1:3]), "bilinear")
            patches = maps.reshape(len(batch), grid.shape[0] // args.patch, args.patch, -1, args.patch)
            return patches.mean((2, 4))

        def shapley(key):
            options = {"segments": grid, "num_samples": args.orders, "chunk_size": 256, "key": key}
            return jaxcam.shapley_sampling(model, batch, **options)[:, :: args.patch, :: args.patch]

        cams = {name: in_patches(method(model, batch, raw=True)) for name, method in METHODS.items()}
        return {SHAPLEY: shapley(keys[0]), AGAIN: shapley(keys[1]), **cams}

    settings = {**weights, "orders": args.orders, "patch": args.patch, "seed": args.seed}
    return _study.batched(values, images, size=SHAPLEY_BATCH, description="Shapley values", saved_by=args, **settings)


def confusion(labels, predicted):
    counts = np.zeros((len(data.CIFAR10_LABELS),) * 2, int)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def spreads(seen):
    """Method, measure and values; last the yardstick that needs no map."""
    rows = [(method, how, seen[f"{how} of {method}"]) for method in METHODS for how in SPREADS]
    return [*rows, ("(no map)", "1 - confidence", 1 - seen["confidence"])]


def compared(values, confidence, right) -> dict:
    """How a number differs between wrong and right predictions."""
    return {
        "right": _statistics.over_images(values[right]),
        "wrong": _statistics.over_images(values[~right]),
        **_statistics.effect(values[~right], values[right]),
        "spearman_with_confidence": float(spearmanr(values, confidence).statistic),
    }


# What is written.


def tables(args, results) -> str:
    show, count = _statistics.plus_minus, results["spread"][0]
    rows = [
        [f"{row['method']}: {row['measure']}", show(row["right"]), show(row["wrong"])]
        + [show(row["cohen_d"], 2), show(row["auc"]), f"{row['spearman_with_confidence']:.2f}"]
        + ([show(row["pairs"]["larger"]), p_value(row["pairs"]["p"])] if "pairs" in row else ["", ""])
        for row in results["spread"]
    ]
    header = ["spread of the heatmap", "right", "wrong", "Cohen's d", "AUC", "Spearman with confidence"]
    header += ["larger in pairs", "p"]
    agreement = results["agreement with Shapley values"]
    counts = np.array(results["confusion"]) * (1 - np.eye(10, dtype=int))
    frequent = [np.unravel_index(index, counts.shape) for index in np.argsort(-counts, axis=None, kind="stable")[:5]]
    confused = [f"{data.CIFAR10_LABELS[i]} as {data.CIFAR10_LABELS[j]} ({counts[i, j]})" for i, j in frequent]
    two = results["two classes"]
    return "\n".join(
        [
            f"Model `{args.model}`: {100 * results['accuracy']['mean']:.2f} ± "
            f"{100 * results['accuracy']['interval']:.2f} % of {results['accuracy']['count']:,} images are classified "
            f"correctly. Most frequent mistakes: {', '.join(confused)}.\n",
            f"Right ({count['right']['count']:,}) against wrong ({count['wrong']['count']:,}) predictions; AUC is the "
            "chance that a wrong prediction has the larger value. ± is half of the 95 % interval. Pairs are one wrong "
            f"and one right prediction whose confidences differ by at most {TOLERANCE}: "
            f"{count['pairs']['larger']['count']:,} of them, in which the wrong one has the larger value as often as "
            "stated; p is Wilcoxon's, by Holm for all rows. Where only global average pooling follows the layer, "
            "XGrad-CAM is Grad-CAM by algebra.\n",
            _study.markdown(header, rows),
            "Pearson correlation of Grad-CAM for the predicted class with Grad-CAM for the true class, where the "
            f"prediction is wrong: {show(two['wrong'])}; for the second best class, where it is right: "
            f"{show(two['right'])}.\n",
            f"Agreement with Shapley values of patches of {args.patch} x {args.patch} pixels ({args.orders} orders) on "
            f"{args.shapley_images} images; the CAMs before their ReLU:\n",
            _study.markdown(
                ["map", *_study.SIMILARITIES],
                [[name, *(show(row[how]) for how in _study.SIMILARITIES)] for name, row in agreement.items()],
            ),
        ]
    )


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def confusion_figure(results):
    title = f"Confusions: {results['accuracy']['mean']:.2%} correct"
    return plot.matrix(results["confusion"], data.CIFAR10_LABELS, xlabel="predicted", ylabel="true", title=title)


def spread_figure(results):
    groups = {}
    for row in results["spread"]:
        values = {"all": row["auc"]} | ({"pairs": row["pairs"]["larger"]} if "pairs" in row else {})
        own = {f"{row['method']}, {what}": (value["mean"], value["interval"]) for what, value in values.items()}
        groups.setdefault(row["measure"], {}).update(own)
    title = "Are heatmaps more spread out where the model is wrong?"
    xlabel = "chance that a wrong prediction has the larger value: of all, and in pairs of equal confidence"
    return plot.intervals(groups, xlabel=xlabel, title=title, reference=0.5)


def maps_of(method, model, images, targets):
    return np.asarray(method(model, jnp.asarray(images), jnp.asarray(targets)))


def probability(seen, index, label) -> float:
    return float(softmax(seen["logits"][index])[label])


def label_of(test, seen, index) -> str:
    predicted = seen["predicted"][index]
    says = f"predicted {data.CIFAR10_LABELS[predicted]}, {probability(seen, index, predicted):.0%}"
    return f"{data.CIFAR10_LABELS[test.labels[index]]}\n{says}"


def examples_figure(args, model, test, images, seen, right):
    """The first right and the first wrong predictions of the test set, in its order: nothing is picked."""
    pairs = zip(np.flatnonzero(right)[: args.examples], np.flatnonzero(~right)[: args.examples], strict=False)
    shown = [index for pair in pairs for index in pair]
    maps = [maps_of(method, model, images[shown], seen["predicted"][shown]) for method in METHODS.values()]
    rows = [[test.images[i], *((test.images[i], each[row]) for each in maps)] for row, i in enumerate(shown)]
    labels = [label_of(test, seen, index) for index in shown]
    title = "The first right (left) and wrong (right) predictions of the test set"
    return plot.gallery(rows, columns=["image", *METHODS], labels=labels, title=title, across=2, side=1.25)


def mistakes_figure(args, model, test, images, seen, right):
    shown = np.flatnonzero(~right)[: args.mistakes]
    maps = [maps_of(jaxcam.grad_cam, model, images[shown], each[shown]) for each in (seen["predicted"], test.labels)]
    rows = [[test.images[i], *((test.images[i], each[row]) for each in maps)] for row, i in enumerate(shown)]
    labels = [f"{label_of(test, seen, i)}\ntrue class, {probability(seen, i, test.labels[i]):.0%}" for i in shown]
    title = "Mistakes: Grad-CAM for the predicted and for the true class"
    columns = ["image", "predicted class", "true class"]
    return plot.gallery(rows, columns=columns, labels=labels, title=title, across=3, side=1.25)


def disagreement_figure(model, test, images, seen, shown, shapley, similarity):
    """Each map as it is shown elsewhere: what speaks for the class, scaled to [0, 1]."""
    heatmaps = maps_of(jaxcam.grad_cam, model, images[shown], seen["predicted"][shown])
    positive = np.maximum(shapley, 0)
    positive = positive / np.maximum(positive.max((1, 2), keepdims=True), 1e-12)
    size = test.images.shape[1] // shapley.shape[1]
    positive = positive.repeat(size, 1).repeat(size, 2)
    rows = [
        [test.images[i], (test.images[i], heatmaps[row]), (test.images[i], positive[row])]
        for row, i in enumerate(shown)
    ]
    labels = [f"{label_of(test, seen, i)}\nPearson {value:.2f}" for i, value in zip(shown, similarity, strict=True)]
    title = "Where Grad-CAM and patch Shapley values disagree most"
    columns = ["image", "Grad-CAM", "Shapley values"]
    return plot.gallery(rows, columns=columns, labels=labels, title=title, across=2, side=1.25)


if __name__ == "__main__":
    main()
