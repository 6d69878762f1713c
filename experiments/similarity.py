"""Do Grad-CAM, saliency and integrated gradients agree on what a CIFAR-10 classifier looks at?

    python -m experiments.similarity --data-dir DIR

Trains a ResNet-18 with CIFAR stem for five epochs from each seed (SGD, learning rate 0.1, momentum 0.9, weight decay
5e-4, batch 128, random crop and flip) and compares the heatmaps of correctly classified test images, after every epoch
on a few and at the end on all; the same with a well-trained model (the bundled one, or `--model`), there for more
methods. Grad-CAM is that of `layer4`, which has 4x4 cells on 32 pixels. Attributions become heatmaps by their absolute
value, summed over channels. Writes metrics.json, table.md, examples.png, and accuracy-pearson.png and accuracy-iou.png.
"""

from functools import partial
from itertools import combinations

import jax
import numpy as np

import jaxcam
from experiments import _report, _study
from experiments.train_cifar10 import MEAN, STD
from jaxcam import _files, data, metrics, plot, train

LAYER = "layer4"
BUNDLED = "resnet18_cifar10"
NORMALIZE = train.Normalization(MEAN, STD)
METRICS = {"pearson": metrics.pearson, "iou": partial(metrics.iou_top, fraction=0.2)}
heatmap = partial(jaxcam.heatmap, percentile=100)  # all pixels keep their rank
TITLES = {"pearson": "Pearson", "iou": "IoU of the top 20 %"}
FEW = 100  # the original's number of images
# The original: one run, about 75 % accuracy; mean and standard deviation over its images.
ORIGINAL = {
    "Grad-CAM / saliency": {"pearson": (0.221, 0.192), "iou": (0.189, 0.081)},
    "Grad-CAM / IG": {"pearson": (0.151, 0.095), "iou": (0.166, 0.042)},
    "saliency / IG": {"pearson": (0.352, 0.086), "iou": (0.232, 0.034)},
}
REFERENCES = ("Grad-CAM", "saliency", "IG")
# CAM methods that need one backward pass, as Grad-CAM does.
VARIANTS = (
    "cam",
    "grad_cam_plus_plus",
    "x_grad_cam",
    "hires_cam",
    "layer_cam",
    "grad_cam_elementwise",
    "shapley_cam",
    "finer_cam",
    "eigen_grad_cam",
)


COMMAND = "python -m experiments.similarity --data-dir DIR"


def main(argv=None):
    on_cpu = jax.default_backend() == "cpu"
    parser = _study.arguments("similarity", __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=16 if on_cpu else 64, help="features of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=16 if on_cpu else 50, help="of integrated gradients")
    parser.add_argument("--images", type=int, help="correctly classified test images at the end (default: all)")
    parser.add_argument("--epoch-images", type=int, default=300, help="as --images, after the other epochs")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, metavar="NAME")
    parser.add_argument("--variant-images", type=int, default=1000, help="as --images, for the well-trained model")
    parser.add_argument(
        "--model", default=BUNDLED, help="well-trained: a registered name, a weight file or hf:owner/repo"
    )
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    args = parser.parse_args(argv)
    if args.smoke:
        args.seeds, args.epochs, args.width, args.num_steps = [0, 1], 1, 4, 4
        args.images, args.epoch_images, args.variant_images, args.variants = 24, 12, 12, VARIANTS[1:2]

    train_data, test_data = _study.cifar10(args)
    module = _study.resnet18(args, width=args.width)
    optimizer = train.sgd(0.1, momentum=0.9, nesterov=False, weight_decay=5e-4)

    def trained(seed, epoch):
        """The state after an epoch, from the checkpoint or by going on from it, and the record of that epoch."""
        return _study.train_until(
            epoch,
            module,
            train_data,
            test_data,
            optimizer=optimizer,
            normalize=NORMALIZE,
            batch_size=args.batch_size,
            seed=seed,
            checkpoint_dir=args.output / "checkpoints" / f"seed-{seed}",
        )

    def one_epoch(seed, epoch):
        state, record = trained(seed, epoch)
        images = args.images if epoch == args.epochs else args.epoch_images
        model = jaxcam.tap(module, state.variables, LAYER)
        name = f"seed {seed}, epoch {epoch}"
        return {"training": record, **measure(args, model, test_data, images, description=name)}

    settings = {name: getattr(args, name) for name in ("epochs", "width", "batch_size", "num_steps")}
    settings |= {name: getattr(args, name) for name in ("images", "epoch_images")}
    runs = {}
    for seed in args.seeds:
        for epoch in range(1, args.epochs + 1):
            name = f"seed-{seed}-epoch-{epoch}"
            runs[seed, epoch] = _study.part(args, name, partial(one_epoch, seed, epoch), **settings)

    classifier = _study.bundled(args, args.model, architecture=args.architecture, num_classes=10)
    if classifier.preprocess.crop != test_data.images.shape[1]:
        raise SystemExit(f"{args.model} takes images of {classifier.preprocess.crop} pixels; CIFAR-10's have 32.")
    model, weights = jaxcam.tap(classifier.module, classifier.variables, LAYER), classifier.about["sha256"]
    options = {"variants": tuple(args.variants), "description": titled(args)}
    normalize = train.Normalization(classifier.preprocess.mean, classifier.preprocess.std)
    compute = partial(measure, args, model, test_data, args.variant_images, normalize=normalize, **options)
    facts = {"num_steps": args.num_steps, "weights": weights, "images": args.variant_images, **options}
    well_trained = _study.part(args, f"well-trained-{weights[:8]}", compute, **facts)

    epochs = [over_seeds([runs[seed, epoch] for seed in args.seeds]) for epoch in range(1, args.epochs + 1)]
    _study.write_metrics(args, {"epochs": epochs, "well-trained": well_trained, "original": ORIGINAL})
    _files.write(args.output / "table.md", tables(args, epochs, well_trained))
    for metric in METRICS:
        plot.save(against_accuracy(args, metric, epochs, well_trained), args.output / f"accuracy-{metric}.png")
    if not (args.output / "examples.png").exists():
        state, _ = trained(args.seeds[0], args.epochs)
        picture = examples(args, jaxcam.tap(module, state.variables, LAYER), test_data)
        plot.save(picture, args.output / "examples.png")
    _report.publish_results(args, "similarity")
    print(f"{len(args.seeds)} runs, test accuracy {epochs[-1]['accuracy']['mean']:.2%}; written to {args.output}")


def answer(found) -> str:
    small, good = found["epochs"][-1]["all"], found["well-trained"]["all"]
    pair = "saliency / IG"
    return (
        f"Little, and by model: Pearson {small['Grad-CAM / IG']['pearson']['mean']:.2f} for Grad-CAM and "
        f"integrated gradients; saliency and these {small[pair]['pearson']['mean']:.2f}, or "
        f"{good[pair]['pearson']['mean']:.2f} on a better model."
    )


def titled(args):
    """What the tables call the well-trained model."""
    return "bundled model" if args.model == BUNDLED else args.model


def heatmaps(model, images, targets, num_steps, variants=(), normalize=NORMALIZE):
    """The heatmaps to be compared, by name: the three of the study, then what else is asked for."""
    images = normalize(images)
    gradients = jaxcam.saliency(model, images, targets)
    chunk_size = min(256, len(images) * num_steps)
    integrated = partial(jaxcam.integrated_gradients, model, images, targets, chunk_size=chunk_size)  # from zeros
    maps = {
        "Grad-CAM": jaxcam.grad_cam(model, images, targets),
        "saliency": heatmap(gradients),
        "IG": heatmap(integrated(num_steps=num_steps)),
    }
    if variants:
        maps |= {name: jaxcam.METHODS[name].function(model, images, targets) for name in variants}
        maps["saliency, maximum over channels"] = heatmap(abs(gradients).max(-1))
        maps["IG, four times the steps"] = heatmap(integrated(num_steps=4 * num_steps))
    return maps


def agreement(model, images, targets, num_steps, variants, normalize):
    """Every metric of every pair with at least one of the three, `[n]` each."""
    maps = heatmaps(model, images, targets, num_steps, variants, normalize)
    pairs = [(a, b) for a, b in combinations(maps, 2) if a in REFERENCES]
    return {f"{a} / {b}": {name: metric(maps[a], maps[b]) for name, metric in METRICS.items()} for a, b in pairs}


def correct(args, model, test_data, normalize=NORMALIZE):
    """The indices of the test images that the model classifies correctly; in smoke mode of all."""
    batch_size = min(500, len(test_data.images))
    network = model.network.module, model.variables
    logits = train.predict(*network, test_data.images, normalize=normalize, batch_size=batch_size)
    right = logits.argmax(-1) == test_data.labels
    return np.flatnonzero(right | args.smoke), float(right.mean())


def measure(args, model, test_data, images, *, description, variants=(), normalize=NORMALIZE):
    """The accuracy, and the agreement on the first images that are classified correctly: on a few, and on `images`."""
    right, accuracy = correct(args, model, test_data, normalize)
    chosen = right[:images]
    explain = partial(agreement, model, num_steps=args.num_steps, variants=variants, normalize=normalize)
    options = {"size": batch(args), "description": description}
    values = _study.batched(explain, test_data.images[chosen], test_data.labels[chosen], **options)
    few = jax.tree.map(lambda each: _study.mean_and_interval(each[:FEW]), values)
    return {"accuracy": accuracy, "few": few, "all": jax.tree.map(_study.mean_and_interval, values)}


def batch(args):
    """Images in one batch of explanations: one size everywhere, so that each method is compiled once."""
    return 12 if args.smoke else 64


def over_seeds(parts):
    """One epoch of all runs."""

    def combined(name):
        leaves = [part[name] for part in parts]
        return {
            pair: {metric: _study.across_runs([each[pair][metric] for each in leaves]) for metric in METRICS}
            for pair in ORIGINAL
        }

    accuracies = [part["accuracy"] for part in parts]
    training = [part["training"] for part in parts]
    accuracy = {"mean": float(np.mean(accuracies)), "runs": accuracies}
    return {"accuracy": accuracy, "few": combined("few"), "all": combined("all"), "training": training}


def tables(args, epochs, well_trained):
    """Ours beside the original's; how agreement changes in training; all methods on the well-trained model."""
    last = epochs[-1]
    count = last["all"]["Grad-CAM / IG"]["pearson"]["count"]
    accuracy = f"{last['accuracy']['mean']:.1%}"
    few = f"first {FEW} images" if count > FEW else "first images"
    text = [
        f"Mean ± standard deviation over correctly classified test images; {len(args.seeds)} runs of {args.epochs} "
        f"epochs at width {args.width}, {accuracy} test accuracy, on average {count:.0f} images; the "
        f"{titled(args)} has {well_trained['accuracy']:.1%}. 95 % intervals of the mean: over images in one "
        "run, and over runs.\n"
    ]
    header = ["pair", "metric", "original, 100 images", f"ours, {few}", f"ours, {count:.0f} images"]
    header += ["± over images", "± over runs", f"{titled(args)}, {args.variant_images} images"]
    rows = []
    for pair, original in ORIGINAL.items():
        for metric, (mean, std) in original.items():
            ours, runs_interval = last["all"][pair][metric], last["all"][pair][metric]["runs_interval"]
            cells = [f"{mean:.3f} ± {std:.3f}", spread(last["few"][pair][metric]), spread(ours)]
            cells += [f"{ours['interval']:.3f}", "" if runs_interval is None else f"{runs_interval:.3f}"]
            rows.append([pair, TITLES[metric], *cells, spread(well_trained["all"][pair][metric])])
    text += [_study.markdown(header, rows)]

    columns = [(pair, metric) for pair in ORIGINAL for metric in METRICS]
    header = ["epoch", "test accuracy", *(f"{pair}, {TITLES[metric]}" for pair, metric in columns)]
    rows = [
        [epoch, f"{each['accuracy']['mean']:.1%}", *(f"{each['all'][p][m]['mean']:.3f}" for p, m in columns)]
        for epoch, each in enumerate(epochs, 1)
    ]
    cells = (f"{well_trained['all'][pair][metric]['mean']:.3f}" for pair, metric in columns)
    rows.append([titled(args), f"{well_trained['accuracy']:.1%}", *cells])
    about = f"How agreement changes with accuracy (means; {args.epoch_images} images before the last epoch).\n"
    text += [about, _study.markdown(header, rows)]

    names = {pair.split(" / ")[1] for pair in well_trained["all"] if pair not in ORIGINAL}
    header = ["method", *(f"{reference}, {TITLES[metric]}" for reference in REFERENCES for metric in METRICS)]
    rows = []
    for name in sorted(names, key=lambda name: (name not in VARIANTS, name)):
        pairs = [well_trained["all"][f"{reference} / {name}"][metric] for reference in REFERENCES for metric in METRICS]
        rows.append([f"`{name}`" if name in VARIANTS else name, *map(spread, pairs)])
    text += [f"Further methods on the {titled(args)}.\n", _study.markdown(header, rows)]
    return "\n".join(text)


def spread(summary):
    return f"{summary['mean']:.3f} ± {summary['std']:.3f}"


def against_accuracy(args, metric, epochs, well_trained):
    """Mean agreement against test accuracy, with 95 % intervals over runs (over images where there is one run)."""
    points = [(each["accuracy"]["mean"], each["all"]) for each in epochs] + [
        (well_trained["accuracy"], well_trained["all"])
    ]
    points.sort(key=lambda point: point[0])
    chosen = {pair: [each[pair][metric] for _, each in points] for pair in ORIGINAL}
    return plot.curves(
        {pair: [each["mean"] for each in own] for pair, own in chosen.items()},
        x=[accuracy for accuracy, _ in points],
        intervals={
            pair: [each.get("runs_interval") or each["interval"] for each in own] for pair, own in chosen.items()
        },
        xlabel=f"test accuracy after epochs 1 to {len(epochs)}, and of the {titled(args)}",
        ylabel=f"agreement, {TITLES[metric]}",
        title="Agreement of methods against accuracy",
    )


def examples(args, model, test_data):
    """The first correctly classified image of six classes, with its three heatmaps."""
    right, _ = correct(args, model, test_data)
    _, first = np.unique(test_data.labels[right], return_index=True)
    chosen = right[first[:6]]
    images, targets = test_data.images[chosen], test_data.labels[chosen]
    explain = partial(heatmaps, model, num_steps=args.num_steps)
    maps = _study.batched(explain, images, targets, size=batch(args), description="examples")
    maps = {name: maps[name] for name in REFERENCES}
    rows = [[image, *(heat[row] for heat in maps.values())] for row, image in enumerate(images)]
    labels = [data.CIFAR10_LABELS[target] for target in targets]
    return plot.gallery(rows, columns=["image", *maps], labels=labels)


if __name__ == "__main__":
    main()
