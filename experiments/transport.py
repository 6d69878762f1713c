"""Does an ImageNet ResNet-50 still see airplanes, cars, ships, trucks and horses in 32 x 32 pixels of CIFAR-10?

    python -m experiments.transport --data-dir DIR [--weights FILE | --random-weights]

Upsamples test images of five classes from 32 to 224 pixels and asks how often the predicted ImageNet label lies in the
class's semantic group, how Grad-CAM, Grad-CAM++ and Score-CAM agree at the last convolutional stage, and how stable
their maps are under blur and JPEG compression of the small image. Batches are saved as they are done. Writes
metrics.json, table.md, examples.png, groups.png and stability.png.
"""

import io
from functools import partial
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

import jaxcam
from experiments import _study
from jaxcam import plot
from jaxcam.data import CIFAR10_LABELS

# The ImageNet labels that are an instance of the CIFAR-10 class, or a part that was photographed on one. CIFAR-10's
# automobiles are cars of all sizes, its trucks the big ones; a pickup is the nearest to a truck that a car gets.
GROUPS = {
    "airplane": ["airliner", "warplane", "wing"],
    "automobile": [
        *["beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"],
        *["car mirror", "car wheel", "grille"],
    ],
    "ship": [
        *["aircraft carrier", "canoe", "catamaran", "container ship", "fireboat", "gondola", "lifeboat", "liner"],
        *["pirate", "schooner", "speedboat", "submarine", "trimaran", "wreck", "yawl"],
    ],
    "truck": ["fire engine", "garbage truck", "moving van", "pickup", "snowplow", "tow truck", "trailer truck"],
    "horse": ["horse cart", "sorrel"],
}


def through_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CORRUPTIONS = {  # of the image of 32 x 32 pixels: after upsampling there is nothing fine left to take away
    "blur, sigma 0.5 px": lambda image: image.filter(ImageFilter.GaussianBlur(0.5)),
    "blur, sigma 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "JPEG, quality 50": partial(through_jpeg, quality=50),
    "JPEG, quality 20": partial(through_jpeg, quality=20),
}
METHODS = {"Grad-CAM": jaxcam.grad_cam, "Grad-CAM++": jaxcam.grad_cam_plus_plus, "Score-CAM": jaxcam.score_cam}
PAIRS = list(combinations(METHODS, 2))


def main(argv=None):
    parser = _study.arguments("transport", __doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="resnet50", help="a registered name or hf:owner/repo")
    source.add_argument("--weights", type=Path, help="a local state dict instead")
    source.add_argument("--random-weights", action="store_true", help="for want of weights: a test of the script")
    parser.add_argument("--architecture", default="resnet50", help="of --weights")
    parser.add_argument("--images", type=int, default=1000, help="classified images for each of the five classes")
    parser.add_argument("--explained", type=int, default=50, help="of these, images whose maps are compared")
    parser.add_argument(
        "--channels", type=int, default=64, help="of Score-CAM, those that vary most; ResNet-50 has 2048"
    )
    parser.add_argument("--size", type=int, default=224, help="side of the upsampled images, in pixels")
    parser.add_argument("--batch-size", type=int, default=10)
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.explained, args.channels, args.size, args.batch_size = 6, 2, 4, 64, 10
        args.random_weights = True
    if args.random_weights:
        small = {"architecture": "resnet18", "width": 8} if args.smoke else {}
        classifier = jaxcam.load(_study.random_weights(args.output / "random.safetensors", **small))
    else:
        classifier = jaxcam.load(args.weights or args.model, architecture=args.architecture if args.weights else None)
    missing = {name for names in GROUPS.values() for name in names} - set(classifier.labels)
    if missing:
        parser.error(f"the model's labels are not ImageNet's: {min(missing)} is not among {len(classifier.labels)}.")

    test = _study.cifar10(args)[1]
    rows = [np.flatnonzero(test.labels == CIFAR10_LABELS.index(name))[: args.images] for name in GROUPS]
    explained = np.concatenate([row[: args.explained] for row in rows])
    seen = classify(args, classifier, test.images[np.concatenate(rows)])
    maps = explain(args, classifier, test.images[explained])
    results = {
        "weights": origin(classifier),
        "groups": shares(classifier, seen, np.repeat(np.arange(len(rows)), [len(row) for row in rows])),
        "agreement": {f"{a} and {b}": summary(maps, f"{a} and {b}") for a, b in PAIRS},
        "stability": {
            corruption: {method: summary(maps, f"{method}, {corruption}") for method in METHODS}
            for corruption in CORRUPTIONS
        },
        "same prediction": {name: _study.mean_and_interval(maps[f"same, {name}"]) for name in CORRUPTIONS},
    }
    args.weights = args.weights and args.weights.name
    _study.write_metrics(args, results)
    (args.output / "table.md").write_text(tables(args, results))
    plot.save(examples(args, classifier, test.images[[row[0] for row in rows]]), args.output / "examples.png")
    plot.save(groups_figure(results), args.output / "groups.png")
    plot.save(stability_figure(results), args.output / "stability.png")
    print(f"{results['weights']}; written to {args.output}")


def origin(classifier) -> str:
    """Whether these are ImageNet weights; a table of other weights has to say so."""
    if classifier.about.get("data") == "ImageNet-1k":
        return f"ImageNet-1k weights, sha256 {classifier.about['sha256'][:8]}"
    return classifier.about.get("note", "weights of unknown origin")


# Measurements.


def ready(images, preprocess, size):
    """Upsampled and normalised, of uint8 images of any size."""
    large = jax.image.resize(images.astype(jnp.float32), (len(images), size, size, 3), "bilinear") / 255
    return (large - jnp.asarray(preprocess.mean)) / jnp.asarray(preprocess.std)


@partial(jax.jit, static_argnames=("preprocess", "size", "channels"))
def look(model, images, targets, *, preprocess, size, channels):
    """Probabilities, and each method's heatmaps for the targets, or for the predicted classes where they are -1."""
    images = ready(images, preprocess, size)
    probabilities = jax.nn.softmax(model(images))
    targets = jnp.where(targets < 0, probabilities.argmax(-1), targets)
    options = {"Score-CAM": {"top_k": channels}}
    return probabilities, {
        name: method(model, images, targets, **options.get(name, {})) for name, method in METHODS.items()
    }


def looking(args, classifier):
    """`look(images, targets)` with this model and these settings."""
    model = classifier.tap()
    return partial(look, model, preprocess=classifier.preprocess, size=args.size, channels=args.channels)


def in_batches(args, name, function, classifier, images) -> dict:
    settings = {"weights": classifier.about["sha256"], "side": args.size, "channels": args.channels}
    return _study.batched(function, images, size=args.batch_size, description=name, saved_by=args, **settings)


def classify(args, classifier, images) -> dict:
    """The five likeliest labels of each image, and the probability of each group."""
    members = np.stack([np.isin(classifier.labels, names) for names in GROUPS.values()]).astype(np.float32)

    @jax.jit
    def top(variables, images):
        logits = classifier.module.apply(variables, ready(images, classifier.preprocess, args.size))
        probabilities = jax.nn.softmax(logits)
        return {"top": jax.lax.top_k(probabilities, 5)[1], "groups": probabilities @ members.T}

    return in_batches(args, "classify", partial(top, classifier.variables), classifier, images)


@jax.jit
def similar(a, b):
    return {name: function(a, b) for name, function in _study.SIMILARITIES.items()}


def explain(args, classifier, images) -> dict:
    """Similarities `[n]` of the methods' maps to each other, and of each method's to those of corrupted images."""
    see = looking(args, classifier)

    def compare(images):
        probabilities, before = see(images, np.full(len(images), -1))
        predicted = probabilities.argmax(-1)
        found, same = {f"{a} and {b}": similar(before[a], before[b]) for a, b in PAIRS}, {}
        for name, corrupt in CORRUPTIONS.items():
            corrupted = np.stack([np.asarray(corrupt(Image.fromarray(image))) for image in images])
            probabilities, after = see(corrupted, np.asarray(predicted))  # the same class is explained
            same[f"same, {name}"] = probabilities.argmax(-1) == predicted
            found |= {f"{method}, {name}": similar(before[method], after[method]) for method in METHODS}
        return same | {f"{how}: {name}": values for name, row in found.items() for how, values in row.items()}

    return in_batches(args, "explain", compare, classifier, images)


def summary(maps, name) -> dict:
    return {how: _study.mean_and_interval(maps[f"{how}: {name}"]) for how in _study.SIMILARITIES}


def shares(classifier, seen, classes) -> dict:
    """How often the prediction falls in the right group, in three readings, for each class and for all."""
    names = list(GROUPS)
    inside = np.stack([np.isin(np.array(classifier.labels)[seen["top"]], GROUPS[name]) for name in names])
    inside = inside[classes, np.arange(len(classes))]  # [image, 5]: whether each of its labels is in its own group
    readings = {
        "first label": inside[:, 0],
        "one of five labels": inside.any(-1),
        "likeliest of the five groups": seen["groups"].argmax(-1) == classes,
    }
    return {
        reading: {
            "all": _study.mean_and_interval(hits),
            **{name: _study.mean_and_interval(hits[classes == index]) for index, name in enumerate(names)},
        }
        for reading, hits in readings.items()
    }


# What is written.


def tables(args, results) -> str:
    show = _study.plus_minus
    groups, similarities = results["groups"], list(_study.SIMILARITIES)
    chance = 100 * np.mean([len(names) for names in GROUPS.values()]) / 1000
    first = groups["first label"]["all"]
    stability = [
        [f"{method}, {corruption}", *(show(row[how]) for how in similarities)]
        for corruption, methods in results["stability"].items()
        for method, row in methods.items()
    ]
    stay = ", ".join(f"{name} {100 * row['mean']:.0f} %" for name, row in results["same prediction"].items())
    return "\n".join(
        [
            f"**{results['weights'][0].upper()}{results['weights'][1:]}.**\n",
            f"Share of the predictions in the right semantic group, {first['count']:,} images; a label drawn by lot is "
            f"in it {chance:.1f} % of the time, a group 20 %:\n",
            _study.markdown(
                ["reading", "all", *GROUPS],
                [[reading, *(show(row[name]) for name in ["all", *GROUPS])] for reading, row in groups.items()],
            ),
            f"Agreement of the maps for the predicted label, {len(GROUPS) * args.explained} images, Score-CAM of "
            f"{args.channels} channels:\n",
            _study.markdown(
                ["maps", *similarities],
                [[name, *(show(row[how]) for how in similarities)] for name, row in results["agreement"].items()],
            ),
            "Stability: the map of an image against that of the same image, blurred or compressed, for the same label. "
            f"The prediction stays the same for: {stay}.\n",
            _study.markdown(["map and corruption", *similarities], stability),
        ]
    )


def examples(args, classifier, images):
    """One row for each class: its first image, what it is taken for, and the three maps."""
    size = max(args.batch_size, len(images))
    probabilities, maps = looking(args, classifier)(_study.padded(images, 0, size), np.full(size, -1))
    rows, labels = [], []
    for index, (name, image) in enumerate(zip(GROUPS, images, strict=True)):
        best = int(probabilities[index].argmax())
        rows.append([image, *((image, np.asarray(each[index])) for each in maps.values())])
        there = "in its group" if classifier.labels[best] in GROUPS[name] else "not in its group"
        labels.append(f"{name}\n{classifier.labels[best]}, {probabilities[index, best]:.0%}\n{there}")
    title = titled("CIFAR-10 through ImageNet's eyes", origin(classifier))
    return plot.gallery(rows, columns=["image", *METHODS], labels=labels, title=title, side=1.5)


def pair(value) -> tuple[float, float]:
    return value["mean"], value["interval"]


def groups_figure(results):
    groups = {reading: {name: pair(value) for name, value in row.items()} for reading, row in results["groups"].items()}
    title = titled("Is the prediction in the right group?", results["weights"])
    return plot.intervals(groups, xlabel="share of the images", title=title)


def stability_figure(results):
    agree = {"between methods": {name: pair(row["Pearson"]) for name, row in results["agreement"].items()}}
    stable = {
        corruption: {method: pair(row["Pearson"]) for method, row in methods.items()}
        for corruption, methods in results["stability"].items()
    }
    title = titled("How alike are the maps?", results["weights"])
    return plot.intervals(agree | stable, xlabel="Pearson correlation", title=title)


def titled(title, weights) -> str:
    return f"{title} (random weights)" if weights == _study.RANDOM else title


if __name__ == "__main__":
    main()
