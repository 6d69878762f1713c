"""What does a model see in these photographs, and when is it only guessing?

    python -m experiments.photos [PHOTO ...] [--model resnet50] [--check-images 10000 --data-dir DIR]

Explains each photograph (by default the one that comes with the package) and what becomes of it with the hottest part
covered, blurred, and cropped to where it was coldest, by Grad-CAM; names the class, of the five likeliest, whose
evidence lies elsewhere; and flags those on which the model seems to guess, with the reasons. `--check-images` puts the
flags themselves to the test, on CIFAR-10 test images whose class is known: how often is the model right with and
without each flag? Writes metrics.json, table.md, a figure for each photograph, overview.jpg, and index.html, a page
that needs no other file.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

import jaxcam
from experiments import _report, _statistics, _study
from jaxcam import _files, metrics, plot

# ImageNet has five cats and 118 dogs: a doubt among them is no doubt about what is there. The classes come in the order
# of their kinds.
KINDS = {
    "dog": [(151, 269)],
    "cat": [(281, 286)],
    "bird": [(7, 25), (80, 101), (127, 147)],
    "fish": [(0, 7), (389, 398)],
    "snake": [(52, 69)],
    "big cat": [(286, 294)],
    "bear": [(294, 298)],
    "insect": [(300, 327)],
    "ape or monkey": [(365, 385)],
}
# Below one half, everything else together is likelier than what is named.
LEAST_CONFIDENCE = 0.5
# One over the chance that two draws agree is the number of equally likely things with as much doubt; a pair of
# look-alikes is two, so above three it is not about telling two things apart. Shannon's entropy would count the long
# tail of a thousand classes, which raised this flag for photographs that the model got right.
MOST_CLASSES = 3
# Where more than two thirds of the map reach half of its maximum, the map tells no place from another.
MOST_AREA = 2 / 3
# An eighth of each side is a frame of 44 % of the area. Photographs have their subject inside; two thirds of the heat
# on the frame is half as much again as an even map has there, and evidence of background.
FRAME, MOST_ON_FRAME = 1 / 8, 2 / 3
# Maps that correlate less show different places.
ELSEWHERE = 0.3
ROWS = 6  # in overview.jpg


def on_frame(heatmaps):
    """The share of each map's heat within `FRAME` of the border; zero for a map without heat."""
    rows, columns = (round(FRAME * side) for side in heatmaps.shape[1:])
    inside = heatmaps[:, rows : heatmaps.shape[1] - rows, columns : heatmaps.shape[2] - columns].sum((1, 2))
    total = heatmaps.sum((1, 2))
    return jnp.where(total > 0, 1 - inside / jnp.where(total > 0, total, 1), 0)


class Flag(NamedTuple):
    name: str
    measure: Callable  # (probabilities of kinds [n, k], heatmaps [n, h, w]) -> [n]
    raised: Callable  # of the measured values
    reason: str


FLAGS = [
    Flag(
        "low confidence",
        lambda probabilities, heatmaps: probabilities.max(-1),
        lambda values: values < LEAST_CONFIDENCE,
        f"the likeliest thing has a probability of {{:.0%}}, which is below {LEAST_CONFIDENCE:.0%}",
    ),
    Flag(
        "many candidates",
        lambda probabilities, heatmaps: 1 / (probabilities**2).sum(-1),
        lambda values: values > MOST_CLASSES,
        f"the doubt is as large as between {{:.1f}} equally likely things, which is more than {MOST_CLASSES}",
    ),
    Flag(
        "diffuse heatmap",
        lambda probabilities, heatmaps: metrics.effective_area(heatmaps),
        lambda values: values > MOST_AREA,
        f"{{:.0%}} of the picture reach half of the highest heat, which is more than {MOST_AREA:.0%}",
    ),
    Flag(
        "border-hugging heatmap",
        lambda probabilities, heatmaps: on_frame(heatmaps),
        lambda values: values > MOST_ON_FRAME,
        f"{{:.0%}} of the heat lie within an eighth of a side of the border, which is more than {MOST_ON_FRAME:.0%}",
    ),
]


def main(argv=None):
    parser = _study.arguments("photos", __doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="image files (default: the bundled photograph)")
    parser.add_argument(
        "--model", default="efficientnet_lite0", help="a registered name, a weight file or hf:owner/repo"
    )
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    parser.add_argument("--layer", help="that the heatmaps explain (default: the model's own)")
    parser.add_argument("--check-images", type=int, default=0, help="CIFAR-10 test images to put the flags to the test")
    args = parser.parse_args(argv)
    if args.smoke:
        args.model, args.check_images = "resnet18_cifar10", 64
    paths = [Path(path) for path in args.photos or [jaxcam.sample()]]
    args.photos = [path.name for path in paths]

    try:
        classifier = jaxcam.load(args.model, architecture=args.architecture)
        images = np.asarray(classifier.preprocess(paths))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    study = Study(args, classifier, classifier.tap(args.layer))
    seen = {"as it is": study.look("photographs", images)}
    pictures = {"as it is": shown(classifier, images)}
    for name, alter in ALTERED.items():
        altered = map(alter, pictures["as it is"], seen["as it is"]["heatmaps"])
        pictures[name] = np.stack([np.asarray(each) for each in altered])
        seen[name] = study.look(name, normalised(classifier, pictures[name]))
    reports = [[study.report(path, name, seen[name], index) for name in seen] for index, path in enumerate(paths)]
    check = check_flags(args) if args.check_images else None

    _study.write_metrics(args, {"photos": [each for group in reports for each in group], "check": check})
    _files.write(args.output / "table.md", table(reports) + ("\n" + check_table(args, check) if check else ""))
    figures = write_figures(args, paths, pictures, seen, reports)
    _files.write(args.output / "index.html", page(args, reports, figures))
    _report.publish(args, "photos", **section(args, reports, figures, check))
    flagged = sum(bool(group[0]["flags"]) for group in reports)
    print(f"{flagged} of {len(reports)} photographs are flagged; open {args.output / 'index.html'}")


# Failure cases.


def shown(classifier, images) -> np.ndarray:
    return np.uint8(np.round(255 * classifier.preprocess.restore(images)))


def normalised(classifier, pictures) -> np.ndarray:
    preprocess = classifier.preprocess
    return (pictures / np.float32(255) - np.float32(preprocess.mean)) / np.float32(preprocess.std)


def occluded(picture, heatmap) -> np.ndarray:
    """Grey over the box around all that reaches half of the highest heat."""
    rows, columns = (np.flatnonzero((heatmap >= 0.5).any(axis)) for axis in (1, 0))
    covered = picture.copy()
    if len(rows):
        covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 128
    return covered


def blurred(picture, heatmap) -> Image.Image:
    return Image.fromarray(picture).filter(ImageFilter.GaussianBlur(picture.shape[1] / 28))


def cropped(picture, heatmap) -> Image.Image:
    """The quarter with the least heat, enlarged."""
    height, width = (side // 2 for side in picture.shape[:2])
    corners = [(top, left) for top in (0, height) for left in (0, width)]
    top, left = min(corners, key=lambda at: heatmap[at[0] : at[0] + height, at[1] : at[1] + width].sum())
    quarter = Image.fromarray(picture[top : top + height, left : left + width])
    return quarter.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)


ALTERED = {"occluded": occluded, "blurred": blurred, "cropped": cropped}


# Measurements.


def members(labels) -> np.ndarray:
    """Which kind each label is of, `[labels, kinds]`; a label that is of none is its own."""
    groups = np.arange(len(labels))
    if len(labels) == 1000:
        for ranges in KINDS.values():
            for start, stop in ranges:
                groups[start:stop] = ranges[0][0]
    return (groups[:, None] == np.unique(groups)).astype(np.float32)


@jax.jit
def look(model, kinds, images):
    """Probabilities, heatmaps, those of the class whose heat lies elsewhere, and the value of each flag's measure."""
    logits = model(images)
    probabilities = jax.nn.softmax(logits)
    likeliest = jax.lax.top_k(logits, 5)[1]
    maps = jax.vmap(lambda targets: jaxcam.grad_cam(model, images, targets), in_axes=1)(likeliest)
    alike = jnp.stack([metrics.pearson(maps[0], each) for each in maps[1:]])
    other = 1 + jnp.nan_to_num(alike, nan=1.0).argmin(0)
    every = jnp.arange(len(images))
    values = {flag.name: flag.measure(probabilities @ kinds, maps[0]) for flag in FLAGS}
    elsewhere = {
        "other": likeliest[every, other],
        "alike": alike[other - 1, every],
        "other heatmaps": maps[other, every],
    }
    return {"probabilities": probabilities, "heatmaps": maps[0], **elsewhere, **values}


class Study(NamedTuple):
    args: object
    classifier: object
    model: jaxcam.Tap

    def look(self, name, images, size=16) -> dict:
        facts = {"layer": self.model.layers, "weights": self.classifier.about["sha256"]}
        # Other photographs, or another model, in the same folder: other parts.
        key = hashlib.sha256(images.tobytes() + json.dumps(facts).encode()).hexdigest()[:8]
        compute, size = partial(look, self.model, members(self.classifier.labels)), min(size, len(images))
        return _study.batched(compute, images, size=size, description=f"{name}-{key}", saved_by=self.args, **facts)

    def report(self, path, altered, seen, index) -> dict:
        labels, probabilities = self.classifier.labels, seen["probabilities"][index]
        values = {flag.name: float(seen[flag.name][index]) for flag in FLAGS}
        raised = {flag.name: flag.reason.format(values[flag.name]) for flag in FLAGS if flag.raised(values[flag.name])}
        best, other = int(probabilities.argmax()), int(seen["other"][index])
        alike = float(seen["alike"][index])
        elsewhere = {"label": labels[other], "probability": float(probabilities[other]), "Pearson": alike}
        return {
            "photo": path.name,
            "altered": altered,
            "predictions": [[labels[each], float(probabilities[each])] for each in probabilities.argsort()[::-1][:5]],
            "kind": kind_of(labels, best, probabilities),
            "elsewhere": elsewhere if alike < ELSEWHERE else None,
            "values": values,
            "flags": raised,
        }


def kind_of(labels, best, probabilities) -> list | None:
    """The kind of the likeliest class with its probability, where it has one."""
    if len(labels) == 1000:
        for kind, ranges in KINDS.items():
            if any(start <= best < stop for start, stop in ranges):
                return [kind, float(sum(probabilities[start:stop].sum() for start, stop in ranges))]
    return None


def check_flags(args) -> dict:
    """How often each flag is raised on test images, and how often the bundled model is right with and without it."""
    classifier = jaxcam.load("resnet18_cifar10")
    test = _study.cifar10(args)[1]
    images = np.asarray(classifier.preprocess(test.images[: args.check_images]))
    seen = Study(args, classifier, classifier.tap()).look("CIFAR-10", images, size=250)
    right = seen["probabilities"].argmax(-1) == test.labels[: len(images)]
    raised = {flag.name: flag.raised(seen[flag.name]) for flag in FLAGS}
    raised["any of them"] = np.any(list(raised.values()), axis=0)
    return {
        name: {
            "raised": _statistics.over_images(there),
            "accuracy with it": _statistics.over_images(right[there]) if there.any() else None,
            "accuracy without it": _statistics.over_images(right[~there]) if not there.all() else None,
        }
        for name, there in raised.items()
    }


# What is written.


COLUMNS = ["image", "heatmap", "overlay", "elsewhere", "most likely classes"]


def verdict(each) -> str:
    return "\n".join(["guessing?", *each["flags"]] if each["flags"] else ["no flag"])


def row(picture, seen, index, each) -> list:
    heatmap, other = seen["heatmaps"][index], seen["other heatmaps"][index]
    bars = [tuple(prediction) for prediction in each["predictions"]]
    return [picture, heatmap, (picture, heatmap), (picture, other) if each["elsewhere"] else None, bars]


def write_figures(args, paths, pictures, seen, reports) -> list[Path]:
    """A figure for each photograph, and the photographs as they are in one."""
    every = [
        [row(pictures[name][index], seen[name], index, each) for name, each in zip(seen, group, strict=True)]
        for index, group in enumerate(reports)
    ]
    files = [args.output / f"{index + 1:02d}-{path.stem}.jpg" for index, path in enumerate(paths)]
    for path, group, rows, file in zip(paths, reports, every, files, strict=True):
        labels = [f"{each['altered']}\n{verdict(each)}" for each in group]
        _study.save_jpeg(plot.gallery(rows, columns=COLUMNS, labels=labels, title=path.name, side=1.7), file)
    labels = [f"{group[0]['photo']}\n{verdict(group[0])}" for group in reports]
    overview = plot.gallery([rows[0] for rows in every[:ROWS]], columns=COLUMNS, labels=labels[:ROWS], side=1.7)
    _study.save_jpeg(overview, args.output / "overview.jpg")
    return files


def what(each) -> str:
    """The likeliest class; where it is one of a kind, the kind too."""
    label, probability = each["predictions"][0]
    kind = f" ({each['kind'][0]}: {each['kind'][1]:.0%})" if each["kind"] else ""
    return f"{label}, {probability:.0%}{kind}"


def note(each) -> str:
    other = each["elsewhere"]
    return f"{other['label']}, {other['probability']:.1%}" if other else ""


def table(reports) -> str:
    rows = [
        [each["photo"], each["altered"], what(each), note(each), "; ".join(each["flags"]) or "none"]
        for group in reports
        for each in group
    ]
    return _study.markdown(["photograph", "", "most likely class", "class with other evidence", "flags"], rows)


def section(args, reports, figures, check) -> dict[str, str]:
    """The study's sentence and section of experiments/README.md."""
    asis, altered = [group[0] for group in reports], [each for group in reports for each in group[1:]]
    counts = [f"{sum(bool(each['flags']) for each in some)} of {len(some)}" for some in (asis, altered)]
    answer = f"{counts[0]} photographs and {counts[1]} spoiled ones look like guesses"
    if check:
        right, others = (100 * check["any of them"][f"accuracy {side} it"]["mean"] for side in ("with", "without"))
        answer += f"; on CIFAR-10 a flag means {right:.0f} % right, none {others:.0f} %"
    option = f" --check-images {args.check_images} --data-dir DIR" if check else ""
    lines = [
        f"`python -m experiments.photos PHOTO ...{option}`; model `{args.model}`, Grad-CAM; "
        f"{_study.environment()['device']}. Each photograph as it is, with its hottest part covered, blurred, and "
        f"cropped to its coldest quarter ([page](../results/photos/index.html)).\n",
        table(reports),
        *(f"![{file.stem}](../results/photos/{file.name})\n" for file in figures),
    ]
    return {"answer": answer + ".", "section": "\n".join(lines + ([check_table(args, check)] if check else []))}


def check_table(args, check) -> str:
    def cell(value):
        if value is None:
            return ""
        interval = f" ± {100 * value['interval']:.1f}" if value["count"] > 1 else ""
        return f"{100 * value['mean']:.1f}{interval} % of {value['count']:,}"

    rows = [[name, *map(cell, values.values())] for name, values in check.items()]
    header = ["flag", "raised", "right with it", "right without it"]
    return (
        f"The flags on {args.check_images:,} test images of CIFAR-10, model `resnet18_cifar10`:\n\n"
        + _study.markdown(header, rows)
    )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #ddd; padding: 1rem 0; }
img { max-width: 100%; }
.guessing { color: #c2403d; font-weight: bold; }
footer { border-top: 1px solid #ddd; color: #6a6a6a; font-size: 0.85rem; }
"""


def page(args, reports, figures) -> str:
    """One HTML file with everything in it; whatever comes from outside is escaped."""
    say = html.escape
    articles = []
    for group, figure in zip(reports, figures, strict=True):
        picture = base64.b64encode(figure.read_bytes()).decode()
        articles.append(
            f"<article><h2>{say(group[0]['photo'])}</h2>{''.join(map(said, group))}"
            f'<img alt="{say(group[0]["photo"])}: image, heatmap, overlay and the most likely classes" '
            f'src="data:image/jpeg;base64,{picture}"></article>'
        )
    environment = _study.environment()
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What the model sees</title>'
        f"<style>{STYLE}</style></head><body><h1>What the model sees</h1>{''.join(articles)}"
        f"<footer><p>Model {say(args.model)}, Grad-CAM. {say(environment['device'])}; {say(versions)}.</p></footer>"
        "</body></html>\n"
    )


def said(each) -> str:
    """What the page says of one picture, in sentences."""
    say = html.escape
    reasons = "".join(f"<li><b>{say(name)}</b>: {say(reason)}.</li>" for name, reason in each["flags"].items())
    flags = f'<p class="guessing">The model may be guessing:</p><ul>{reasons}</ul>' if reasons else ""
    other = each["elsewhere"]
    place = (
        f"<p>The evidence for {say(other['label'])} ({other['probability']:.1%}) lies elsewhere: "
        f"its heatmap and that of {say(each['predictions'][0][0])} correlate by {other['Pearson']:.2f}.</p>"
        if other
        else ""
    )
    return f"<h3>{say(each['altered'])}</h3><p>{say(what(each))}</p>{flags}{place}"


if __name__ == "__main__":
    main()
