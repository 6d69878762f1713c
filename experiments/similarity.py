"""Do Grad-CAM, saliency and integrated gradients agree on what a CIFAR-10 classifier looks at?

    python -m experiments.similarity --data-dir DIR

Trains a ResNet-18 with CIFAR stem from each seed (Muon, cosine schedule, small images first, random crop and flip) and
compares the heatmaps of correctly classified test images, after every epoch on a few and at the end on many; the same
with a well-trained model (the bundled one, or `--model`), there for more methods, and with EfficientNet-Lite0 on
photographs, each whole and in four parts. Grad-CAM is that of the last stage, which has 4x4 cells on 32 pixels.
Attributions become heatmaps by their absolute value, summed over channels. Writes metrics.json, table.md, examples.png,
accuracy-pearson.png and accuracy-iou.png.
"""

from functools import partial
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import jaxcam
from experiments import _pasted, _report, _statistics, _study
from experiments.train_cifar10 import MEAN, STD
from jaxcam import _files, data, metrics, plot, train
from jaxcam.image import open_image

LAYER = "layer4"
BUNDLED = "resnet18_cifar10"
NORMALIZE = train.Normalization(MEAN, STD)
METRICS = {"pearson": metrics.pearson, "iou": partial(metrics.iou_top, fraction=0.2)}
heatmap = partial(jaxcam.heatmap, percentile=100)  # all pixels keep their rank
TITLES = {"pearson": "Pearson", "iou": "IoU of the top 20 %"}
FEW = 100  # the original's number of images
PHOTOGRAPHS = "photographs"
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


COMMAND = "python -m experiments.similarity --data-dir DIR [--photos DIR]"


def arguments(argv):
    on_cpu = jax.default_backend() == "cpu"
    parser = _study.arguments("similarity", __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=32 if on_cpu else 64, help="features of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    _study.add_dtype(parser)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="peak of the cosine schedule")
    parser.add_argument("--smallest", type=int, default=20, help="side of the images in the first epochs")
    parser.add_argument("--num-steps", type=int, default=16 if on_cpu else 50, help="of integrated gradients")
    parser.add_argument("--images", type=int, default=1000, help="correctly classified test images at the end")
    parser.add_argument("--epoch-images", type=int, default=300, help="as --images, after the other epochs")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, metavar="NAME")
    parser.add_argument("--variant-images", type=int, default=1000, help="as --images, for the well-trained model")
    parser.add_argument(
        "--model", default=BUNDLED, help="well-trained: a registered name, a weight file or hf:owner/repo"
    )
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    parser.add_argument("--photos", type=Path, help="folder with more photographs than scikit-image's")
    args = parser.parse_args(argv)
    if args.smoke:
        args.seeds, args.epochs, args.width, args.num_steps = [0, 1], 1, 4, 4
        args.images, args.epoch_images, args.variant_images, args.variants = 24, 12, 12, VARIANTS[1:2]
    return args


def main(argv=None):
    args = arguments(argv)
    train_data, test_data = _study.cifar10(args)
    module = _study.resnet18(args, width=args.width, dtype=jnp.dtype(args.dtype))
    explained = module.clone(dtype=jnp.float32)
    schedule = train.cosine(args.learning_rate, args.epochs * (len(train_data.images) // args.batch_size))
    optimizer = train.muon(schedule, num_iterations=3)
    sizes = train.progressive(args.smallest, train_data.images.shape[1], args.epochs)

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
            image_sizes=sizes,
            optimizer_settings={name: getattr(args, name) for name in ("learning_rate", "epochs")},
            seed=seed,
            checkpoint_dir=args.output / "checkpoints" / f"seed-{seed}",
        )

    def one_epoch(seed, epoch):
        state, record = trained(seed, epoch)
        images = args.images if epoch == args.epochs else args.epoch_images
        model = jaxcam.tap(explained, state.variables, LAYER)
        name = f"seed {seed}, epoch {epoch}"
        return {"training": record, **measure(args, model, test_data, images, description=name)}

    names = ("epochs", "width", "batch_size", "dtype", "learning_rate", "smallest", "num_steps")
    settings = {name: getattr(args, name) for name in (*names, "images", "epoch_images")}
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
    found = {"epochs": epochs, "well-trained": well_trained, PHOTOGRAPHS: of_photographs(args), "original": ORIGINAL}
    found["differences"] = differences(epochs[-1]["all"])
    _study.write_metrics(args, found)
    _files.write(args.output / "table.md", tables(args, found))
    for metric in METRICS:
        plot.save(against_accuracy(args, metric, epochs, well_trained), args.output / f"accuracy-{metric}.png")
    if not (args.output / "examples.png").exists():
        state, _ = trained(args.seeds[0], args.epochs)
        picture = examples(args, jaxcam.tap(explained, state.variables, LAYER), test_data)
        plot.save(picture, args.output / "examples.png")
    _report.publish_results(args, "similarity")
    print(f"{len(args.seeds)} runs, test accuracy {epochs[-1]['accuracy']['mean']:.2%}; written to {args.output}")


def answer(found) -> str:
    cam, other, gradients = (each["pearson"]["mean"] for each in found["epochs"][-1]["all"].values())
    seen = [each["inside"] for own in found["differences"].values() for each in own.values()]
    bundled = found["well-trained"]["all"]["saliency / IG"]["pearson"]["mean"]
    return (
        f"Grad-CAM with gradients little (Pearson {cam:.2f}, {other:.2f}), these with each other {gradients:.2f}, or "
        f"{bundled:.2f} on the bundled model; {len(seen) - sum(seen)} of {len(seen)} differ from the original's."
    )


def differences(ours) -> dict:
    """Ours minus the original's, and half the 95 % interval of that for another seed and the original's 100 images."""
    found = {}
    for pair, original in ORIGINAL.items():
        for metric, (mean, std) in original.items():
            own = ours[pair][metric]
            expected = np.hypot(own["next_run"] or 0, 1.96 * std / np.sqrt(FEW))
            value = own["mean"] - mean
            inside = bool(abs(value) <= expected)
            found.setdefault(pair, {})[metric] = {"mean": value, "interval": float(expected), "inside": inside}
    return found


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
    few = jax.tree.map(lambda each: _statistics.over_images(each[:FEW]), values)
    return {"accuracy": accuracy, "few": few, "all": jax.tree.map(_statistics.over_images, values)}


def of_photographs(args):
    """The agreement of EfficientNet-Lite0's maps for the class it predicts; `None` where there are no photographs."""
    files = sorted(_pasted.photographs(args.photos).items())
    if not files:
        return None
    classifier = _study.bundled(args, "efficientnet_lite0")
    model, normalize = classifier.tap(), train.Normalization(classifier.preprocess.mean, classifier.preprocess.std)
    options = {"size": batch(args) if args.smoke else 5, "description": PHOTOGRAPHS}

    def compute():
        size = 32 if args.smoke else classifier.preprocess.crop
        images = np.stack([each for _, file in files for each in parts_of(open_image(file).convert("RGB"), size)])
        targets = _study.batched(lambda each: np.argmax(model(normalize(each)), -1), images, **options)
        explain = partial(agreement, model, num_steps=args.num_steps, variants=(), normalize=normalize)
        return {"all": jax.tree.map(_statistics.over_images, _study.batched(explain, images, targets, **options))}

    facts = {"num_steps": args.num_steps, "weights": classifier.about["sha256"], "files": [name for name, _ in files]}
    return _study.part(args, PHOTOGRAPHS, compute, **facts)


def parts_of(photo, size):
    """The square in the middle, and the four corners of two thirds of its side."""
    side = min(photo.size) * 2 // 3
    corners = [(x, y) for x in (0, photo.width - side) for y in (0, photo.height - side)]
    boxes = [(x, y, x + side, y + side) for x, y in corners]
    parts = [photo.resize((size, size), Image.Resampling.BICUBIC, box) for box in boxes]
    return [np.asarray(each) for each in (_pasted.square(photo, size), *parts)]


def batch(args):
    """Images in one batch of explanations: one size everywhere, so that each method is compiled once."""
    return 12 if args.smoke else 64


def over_seeds(parts):
    """One epoch of all runs."""

    def combined(name):
        leaves = [part[name] for part in parts]
        return {
            pair: {metric: _statistics.over_seeds([each[pair][metric] for each in leaves]) for metric in METRICS}
            for pair in ORIGINAL
        }

    accuracies = [part["accuracy"] for part in parts]
    training = [part["training"] for part in parts]
    accuracy = {"mean": float(np.mean(accuracies)), "runs": accuracies}
    return {"accuracy": accuracy, "few": combined("few"), "all": combined("all"), "training": training}


def tables(args, found):
    """Ours beside the original's; how agreement changes in training; all methods on the well-trained model."""
    epochs, well_trained, photographs = found["epochs"], found["well-trained"], found[PHOTOGRAPHS]
    last = epochs[-1]
    count = last["all"]["Grad-CAM / IG"]["pearson"]["count"]
    accuracy = f"{last['accuracy']['mean']:.1%}"
    few = f"first {FEW} images" if count > FEW else "first images"
    text = [
        f"Mean ± standard deviation over correctly classified test images; {len(args.seeds)} runs of {args.epochs} "
        f"epochs at width {args.width}, {accuracy} test accuracy (the original about 75 %), on average {count:.0f} "
        f"images; the {titled(args)} has {well_trained['accuracy']:.1%}. 95 % intervals of the mean: over images in "
        "one run, and over runs. The last column is ours minus the original's, with half the 95 % interval of that "
        f"difference for one more run like ours and {FEW} other images; in bold where it is larger.\n"
    ]
    header = ["pair", "metric", "original, 100 images", f"ours, {few}", f"ours, {count:.0f} images"]
    header += ["± over images", "± over runs", f"{titled(args)}, {args.variant_images} images"]
    if photographs:
        shown = photographs["all"]["Grad-CAM / IG"]["pearson"]["count"]
        header.append(f"EfficientNet-Lite0, {shown} parts of photographs")
    header.append("ours - original")
    rows = []
    for pair, original in ORIGINAL.items():
        for metric, (mean, std) in original.items():
            ours, runs_interval = last["all"][pair][metric], last["all"][pair][metric]["runs_interval"]
            cells = [f"{mean:.3f} ± {std:.3f}", spread(last["few"][pair][metric]), spread(ours)]
            cells += [f"{ours['interval']:.3f}", "" if runs_interval is None else f"{runs_interval:.3f}"]
            cells += [spread(each["all"][pair][metric]) for each in (well_trained, photographs) if each]
            difference = found["differences"][pair][metric]
            value = f"{difference['mean']:+.3f}"
            cells.append(f"{value if difference['inside'] else f'**{value}**'} (± {difference['interval']:.3f})")
            rows.append([pair, TITLES[metric], *cells])
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
