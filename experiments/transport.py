"""Does an ImageNet model still see airplanes, cars, ships, trucks and horses in 32 x 32 pixels of CIFAR-10?

    python -m experiments.transport --data-dir DIR [--photos DIR] [--model NAME | --weights FILE]

Upsamples the test images of five classes from 32 to 224 pixels (bicubic) and asks how often the predicted ImageNet
label lies in the class's semantic group, where Grad-CAM, Grad-CAM++ and Score-CAM look, how far they agree, and how
stable their maps are when the small image loses more: pixels, sharpness, or detail to JPEG. Photographs, if given, go
the same way: down to 96, 64 and 32 pixels and back. Everything done is saved: a larger `--explained` adds to it. Writes
metrics.json, table.md, examples.png, groups.png, stability.png and, of photographs, photos.png.
"""

import dataclasses
import io
from functools import partial
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

import jaxcam
from experiments import _report, _statistics, _study, _transport
from jaxcam import data, metrics, plot
from jaxcam._array import normalize, resize

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


METHODS = {"Grad-CAM": jaxcam.grad_cam, "Grad-CAM++": jaxcam.grad_cam_plus_plus, "Score-CAM": jaxcam.score_cam}
PAIRS = [f"{a} and {b}" for a, b in combinations(METHODS, 2)]


def through_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def reduced(image, side):
    return image.resize((side, side), Image.Resampling.BICUBIC)


ALTERED = {  # the image of 32 x 32 pixels: after upsampling there is nothing fine left to take away
    "16 px": partial(reduced, side=16),
    "blur, sigma 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "JPEG, quality 20": partial(through_jpeg, quality=20),
}
PIXELS = {f"{side} px": partial(reduced, side=side) for side in (96, 64, 32)}  # of a photograph
CHANNELS = (16, 32, 64, 256)  # of Score-CAM, compared with all
RULES = {"largest mean": lambda values: values.mean(1), "largest variance": lambda values: values.var(1)}


def main(argv=None):
    parser = _study.arguments("transport", __doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="efficientnet_lite0", help="a registered name or hf:owner/repo")
    source.add_argument("--weights", type=Path, help="a local state dict instead")
    parser.add_argument("--architecture", default="resnet50", help="of --weights")
    parser.add_argument("--photos", type=Path, help="a folder of photographs, to be taken down to 32 pixels")
    parser.add_argument("--images", type=int, default=1000, help="classified images of each class")
    parser.add_argument("--altered", type=int, default=100, help="of these, images that are also classified altered")
    parser.add_argument("--explained", type=int, default=40, help="of these, images whose maps are compared")
    parser.add_argument("--channels", type=int, default=64, help="of Score-CAM; EfficientNet-Lite0 has 1280")
    parser.add_argument("--ablated", type=int, default=5, help="images on which all of Score-CAM's channels are tried")
    parser.add_argument("--size", type=int, default=224, help="side of the upsampled images, in pixels")
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.altered, args.explained, args.channels, args.ablated, args.size = 4, 2, 2, 4, 2, 48
        args.weights = _study.random_weights(args.output / "random.safetensors", "resnet18", width=8, passes=0)
        args.architecture = None
    classifier = jaxcam.load(args.weights or args.model, architecture=args.architecture if args.weights else None)
    missing = {name for names in GROUPS.values() for name in names} - set(classifier.labels)
    if missing:
        parser.error(f"the model's labels are not ImageNet's: {min(missing)} is not among {len(classifier.labels)}.")

    test = _study.cifar10(args)[1]
    rows = [np.flatnonzero(test.labels == data.CIFAR10_LABELS.index(name))[: args.images] for name in GROUPS]
    classes = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    images = test.images[np.concatenate(rows)]
    few = np.concatenate([np.flatnonzero(classes == index)[: args.altered] for index in range(len(rows))])
    study = Study(args, classifier)
    seen = {"32 px": study.classify("classify", images)}
    for name, alter in ALTERED.items():
        seen[name] = study.classify(f"classify {name}", altered(images[few], alter))
    rounds = [test.images[[row[index] for row in rows]] for index in range(args.explained)]
    maps = study.explain([(f"explain {index}", batch, ALTERED) for index, batch in enumerate(rounds)])
    maps["class"] = np.tile(np.arange(len(rows)), args.explained)
    taken = seen["32 px"] | {"few": {name: each[few] for name, each in seen["32 px"].items()}}
    results = {
        "weights": origin(classifier),
        "chance": float(np.mean([len(names) for names in GROUPS.values()]) / len(classifier.labels)),
        "groups": shares(classifier, taken, classes),
        "altered": {
            name: shares(classifier, taken["few"] if name == "32 px" else each, classes[few])["first label"]
            for name, each in seen.items()
        },
        **compared(maps, ALTERED, "32 px"),
        "images": one_by_one(classifier, maps, 10),
        "ablation": study.ablate(np.concatenate(rounds)[: args.ablated]),
    }
    views = photographs(args)
    if views:
        looks = study.explain([(f"photo {name}", each, PIXELS) for name, each in views.items()])
        results["photographs"] = {"names": list(views)} | compared(looks, PIXELS, "all pixels")
    args.weights, args.photos = args.weights and args.weights.name, args.photos and args.photos.name
    _study.write_metrics(args, results)
    _transport.write(args, results, np.concatenate(rounds), maps)
    if views:
        squares = np.concatenate(list(views.values()))
        figure = _transport.photographs_figure(results, classifier, squares, looks, PIXELS)
        plot.save(figure, args.output / "photos.png")
    _report.publish(args, "transport", **_transport.page(args, results))
    print(f"{results['weights']}; written to {args.output}")


def origin(classifier) -> str:
    """Whether these are ImageNet weights; a table of other weights has to say so."""
    if classifier.about.get("data") == "ImageNet-1k":
        return f"{classifier.name}, ImageNet-1k weights, sha256 {classifier.about['sha256'][:8]}"
    return classifier.about.get("note", "weights of unknown origin")


def altered(images, alter) -> np.ndarray:
    return np.stack([np.asarray(alter(Image.fromarray(image))) for image in images])


def photographs(args) -> dict[str, np.ndarray]:
    """Five squares of each photograph, its corners and its centre, of four fifths of the short side."""
    views = {}
    files = sorted(args.photos.iterdir()) if args.photos else []
    for file in files:
        image = jaxcam.image.open_image(file)
        side = 4 * min(image.size) // 5
        right, bottom = image.width - side, image.height - side
        corners = [(0, 0), (right, 0), (right // 2, bottom // 2), (0, bottom), (right, bottom)]
        squares = [image.crop((x, y, x + side, y + side)) for x, y in corners]
        views[file.stem] = np.stack([np.asarray(reduced(square, args.size)) for square in squares])
    return views


# Measurements.


@jax.jit
def classify(model, images, members):
    """The five likeliest labels, the probability of the likeliest, and that of each group."""
    probabilities = jax.nn.softmax(model(images))
    return {"top": jax.lax.top_k(probabilities, 5)[1], "groups": probabilities @ members.T}


@partial(jax.jit, static_argnames="channels")
def look(model, images, targets, *, channels):
    """Probabilities, and each method's heatmaps for the targets, or for the predicted classes where they are -1."""
    probabilities = jax.nn.softmax(model(images))
    targets = jnp.where(targets < 0, probabilities.argmax(-1), targets)
    options = {"Score-CAM": {"max_channels": channels}}
    return probabilities, {
        name: method(model, images, targets, **options.get(name, {})) for name, method in METHODS.items()
    }


@jax.jit
def similar(a, b):
    return {name: function(a, b) for name, function in _study.SIMILARITIES.items()}


@jax.jit
def up_to_both(model, images):
    """The model's output, and what it has at the layer."""
    return model(images), model.features(images)


@jax.jit
def seen_through(model, image, values, target):
    """The score of an image seen through each of some channels `[p, m]`, as Score-CAM does."""
    side = round(values.shape[0] ** 0.5)
    masks = resize(values.T.reshape(-1, side, side), image.shape[:-1], align_corners=True)
    return model(image * normalize(masks, 1)[..., None])[:, target]


class Study:
    """One model and these settings; what is measured is saved as it is done."""

    def __init__(self, args, classifier):
        self.args, self.classifier, self.model = args, classifier, classifier.tap()
        self.settings = {"weights": classifier.about["sha256"], "side": args.size}
        whole = {"resize": args.size, "crop": args.size, "interpolation": "bicubic"}
        self.ready = dataclasses.replace(classifier.preprocess, **whole)  # upsampled, nothing cropped, normalised

    def classify(self, name, images) -> dict:
        members = np.stack([np.isin(self.classifier.labels, names) for names in GROUPS.values()]).astype(np.float32)

        def compute(images):
            return classify(self.model, self.ready(images), members)

        return _study.batched(compute, images, size=20, description=name, saved_by=self.args, **self.settings)

    def explain(self, batches) -> dict:
        """Of each `(name, images, alterations)` what `compare` finds, as arrays of all images."""
        found, settings = [], self.settings | {"channels": self.args.channels}
        with _study.progress() as bar:
            for name, images, alterations in bar.track(batches, description="explain"):
                compute = partial(self.compare, images, alterations)
                found.append(_study.part(self.args, name, compute, **settings))
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def compare(self, images, alterations) -> dict:
        """The maps for the predicted label, and for the same label those of the altered images."""
        see = partial(look, self.model, channels=self.args.channels)
        probabilities, before = see(self.ready(images), np.full(len(images), -1))
        label = probabilities.argmax(-1)
        found = {"label": label, "probability: ": probabilities.max(-1)} | alike(before, "")
        for method, heatmaps in before.items():
            found[f"heat: {method}"] = np.asarray(heatmaps[:, ::4, ::4], np.float16)
        for name, alter in alterations.items():
            probabilities, after = see(self.ready(altered(images, alter)), np.asarray(label))
            found[f"same: {name}"] = probabilities.argmax(-1) == label
            found[f"probability: {name}"] = jnp.take_along_axis(probabilities, label[:, None], 1)[:, 0]
            found |= alike(after, name)
            for method in METHODS:
                values = similar(before[method], after[method])
                found |= {f"{how}: {method}, {name}": each for how, each in values.items()}
            found[f"heat {name}: Grad-CAM"] = np.asarray(after["Grad-CAM"][:, ::4, ::4], np.float16)
        return found

    def ablate(self, images) -> dict:
        """Pearson correlation of Score-CAM's map of some channels to that of all, for both rules to choose them."""
        maps = {}
        for index, image in enumerate(images):
            found = _study.part(self.args, f"channels {index}", partial(self.channels, image), **self.settings)
            scores, values = found["scores"], found["values"]
            whole = normalize(np.maximum(values @ softmax(scores), 0)[None], 1)
            for rule, rank in RULES.items():
                order = np.argsort(-rank(values.T), kind="stable")
                for count in (each for each in CHANNELS if each < len(scores)):
                    kept = order[:count]
                    part = normalize(np.maximum(values[:, kept] @ softmax(scores[kept]), 0)[None], 1)
                    maps.setdefault(f"{count}, {rule}", []).append(float(metrics.pearson(part, whole)[0]))
        return {name: _statistics.over_images(values) for name, values in maps.items()} | {"channels": len(scores)}

    def channels(self, image) -> dict:
        """Every channel's activations `[p, k]`, and the score of the predicted class seen through it, `[k]`."""
        batch = self.ready(image)
        output, features = up_to_both(self.model, batch)
        target, values = int(output[0].argmax()), np.asarray(features).reshape(-1, features.shape[-1])
        scores = [
            np.asarray(seen_through(self.model, batch[0], values[:, first : first + 8], target))
            for first in range(0, values.shape[-1], 8)
        ]
        return {"scores": np.concatenate(scores), "values": values}


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def alike(maps, name) -> dict:
    """How far the methods agree with each other on the images altered so."""
    found = {}
    for a, b in combinations(METHODS, 2):
        found |= {f"{how}: {a} and {b}, {name}": each for how, each in similar(maps[a], maps[b]).items()}
    return found


# Summaries.


def of_classes(maps, values) -> dict:
    """Mean and interval of all images, and of each class where there are classes."""
    found = {"all": _statistics.over_images(values)}
    if "class" in maps:
        found |= {name: _statistics.over_images(values[maps["class"] == i]) for i, name in enumerate(GROUPS)}
    return found


def compared(maps, alterations, plain) -> dict:
    """Agreement and stability, and whether the prediction stays, by alteration."""
    how = list(_study.SIMILARITIES)
    return {
        "agreement": {
            plain if name == "" else name: {
                pair: {each: of_classes(maps, maps[f"{each}: {pair}, {name}"]) for each in how} for pair in PAIRS
            }
            for name in ["", *alterations]
        },
        "stability": {
            name: {
                method: {each: of_classes(maps, maps[f"{each}: {method}, {name}"]) for each in how}
                for method in METHODS
            }
            for name in alterations
        },
        "same prediction": {name: of_classes(maps, maps[f"same: {name}"]) for name in alterations},
        "probability": {
            plain if name == "" else name: of_classes(maps, maps[f"probability: {name}"]) for name in ["", *alterations]
        },
    }


def place(heatmap) -> str:
    """Where a map is hottest, and the share of the image that is at least half as hot."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    row = ("top", "middle", "bottom")[3 * y // heatmap.shape[0]]
    column = ("left", "centre", "right")[3 * x // heatmap.shape[1]]
    there = "centre" if (row, column) == ("middle", "centre") else f"{row} {column}".replace(" centre", "")
    return f"{there}, {100 * np.mean(heatmap >= 0.5):.0f} %"


def one_by_one(classifier, maps, count) -> list[dict]:
    """The first images: what each is taken for, how surely, and where the methods look."""
    return [
        {
            "class": list(GROUPS)[maps["class"][index]],
            "label": classifier.labels[maps["label"][index]],
            "in its group": classifier.labels[maps["label"][index]] in list(GROUPS.values())[maps["class"][index]],
            "probability": float(maps["probability: "][index]),
            **{method: place(maps[f"heat: {method}"][index]) for method in METHODS},
        }
        for index in range(min(count, len(maps["class"])))
    ]


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
    return {reading: of_classes({"class": classes}, hits) for reading, hits in readings.items()}


if __name__ == "__main__":
    main()
