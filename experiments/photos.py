"""What does a model see in these photographs, and when is it only guessing?

    python -m experiments.photos [PHOTO ...] [--model resnet50] [--check-images 10000 --data-dir DIR]

Explains each photograph (by default the one that comes with the package) by Grad-CAM, and flags those on which the
model seems to guess, with the reasons. `--check-images` puts the flags themselves to the test, on CIFAR-10 test images
whose class is known: how often is the model right with and without each flag? Writes metrics.json, table.md, a figure
for each photograph, overview.png, and index.html, a page that needs no other file.
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

import jaxcam
from experiments import _study
from jaxcam import metrics, plot
from jaxcam.data import CIFAR10_LABELS

# Below one half, the other classes together are likelier than the one that is named.
LEAST_CONFIDENCE = 0.5
# The exponential of the entropy is the number of equally likely classes with as much doubt, however many there are in
# all; a pair of look-alikes is two, so above three it is not about telling two things apart.
MOST_CLASSES = 3
# Where more than two thirds of the map reach half of its maximum, the map tells no place from another.
MOST_AREA = 2 / 3
# An eighth of each side is a frame of 44 % of the area. Photographs have their subject inside; two thirds of the heat
# on the frame is half as much again as an even map has there, and evidence of background.
FRAME, MOST_ON_FRAME = 1 / 8, 2 / 3
BATCH = 16
ROWS = 6  # in overview.png


def on_frame(heatmaps):
    """The share of each map's heat within `FRAME` of the border; zero for a map without heat."""
    rows, columns = (round(FRAME * side) for side in heatmaps.shape[1:])
    inside = heatmaps[:, rows : heatmaps.shape[1] - rows, columns : heatmaps.shape[2] - columns].sum((1, 2))
    total = heatmaps.sum((1, 2))
    return jnp.where(total > 0, 1 - inside / jnp.where(total > 0, total, 1), 0)


class Flag(NamedTuple):
    name: str
    measure: Callable  # (probabilities [n, k], heatmaps [n, h, w]) -> [n]
    raised: Callable  # of the measured values
    reason: str


FLAGS = [
    Flag(
        "low confidence",
        lambda probabilities, heatmaps: probabilities.max(-1),
        lambda values: values < LEAST_CONFIDENCE,
        f"the most likely class has a probability of {{:.0%}}, which is below {LEAST_CONFIDENCE:.0%}",
    ),
    Flag(
        "high entropy",
        lambda probabilities, heatmaps: jnp.exp(jax.scipy.special.entr(probabilities).sum(-1)),
        lambda values: values > MOST_CLASSES,
        f"the doubt is that between {{:.1f}} equally likely classes, which is more than {MOST_CLASSES}",
    ),
    Flag(
        "diffuse heatmap",
        lambda probabilities, heatmaps: metrics.effective_area(heatmaps),
        lambda values: values > MOST_AREA,
        f"{{:.0%}} of the heatmap reach half of its maximum, which is more than {MOST_AREA:.0%}",
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
    parser.add_argument("--model", default="resnet18_cifar10", help="a registered name, a weight file or hf:owner/repo")
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    parser.add_argument("--layer", help="that the heatmaps explain (default: the model's own)")
    parser.add_argument("--check-images", type=int, default=0, help="CIFAR-10 test images to put the flags to the test")
    args = parser.parse_args(argv)
    if args.smoke:
        args.check_images = 64
    paths = [Path(path) for path in args.photos or [jaxcam.sample()]]
    args.photos = [path.name for path in paths]

    try:
        classifier = jaxcam.load(args.model, architecture=args.architecture)
        views = classifier.preprocess.view(paths)
        images = np.asarray(classifier.preprocess(paths))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.check_images and classifier.labels != CIFAR10_LABELS:
        parser.error("--check-images needs a model with CIFAR-10's classes.")
    model = classifier.tap(args.layer)
    seen = look_at_all(args, "photographs", model, images, classifier.about["sha256"])
    reports = [report(path, seen, index, classifier.labels) for index, path in enumerate(paths)]
    check = check_flags(args, classifier, model) if args.check_images else None

    _study.write_metrics(args, {"photos": reports, "check": check})
    (args.output / "table.md").write_text(table(reports) + ("\n" + check_table(args, check) if check else ""))
    rows = [row(views[index], seen["heatmaps"][index], each) for index, each in enumerate(reports)]
    columns = ["image", "heatmap", "overlay", "most likely classes"]
    for index, (cells, each) in enumerate(zip(rows, reports, strict=True)):
        figure = plot.gallery([cells], columns=columns, labels=[verdict(each)], title=each["photo"], side=2.2)
        each["figure"] = args.output / f"{index + 1:02d}-{Path(each['photo']).stem}.png"
        plot.save(figure, each["figure"])
    labels = [f"{each['photo']}\n{verdict(each)}" for each in reports]
    overview = plot.gallery(rows[:ROWS], columns=columns, labels=labels[:ROWS], side=1.9)
    plot.save(overview, args.output / "overview.png")
    (args.output / "index.html").write_text(page(args, reports), encoding="utf-8")
    flagged = sum(bool(each["flags"]) for each in reports)
    print(f"{flagged} of {len(reports)} photographs are flagged; open {args.output / 'index.html'}")


# Measurements.


def look_at_all(args, name, model, images, weights) -> dict:
    """Probabilities, heatmaps and the value of each flag's measure, for every image."""
    facts = {"layer": model.layers, "weights": weights}
    # Other photographs, or another model, in the same folder: other parts.
    key = hashlib.sha256(images.tobytes() + json.dumps(facts).encode()).hexdigest()[:8]
    compute = partial(look, model)
    return _study.batched(compute, images, size=BATCH, description=f"{name}-{key}", saved_by=args, **facts)


@jax.jit
def look(model, images):
    probabilities, heatmaps = jax.nn.softmax(model(images)), jaxcam.grad_cam(model, images)
    values = {flag.name: flag.measure(probabilities, heatmaps) for flag in FLAGS}
    return {"probabilities": probabilities, "heatmaps": heatmaps, **values}


def report(path, seen, index, labels) -> dict:
    probabilities = seen["probabilities"][index]
    values = {flag.name: float(seen[flag.name][index]) for flag in FLAGS}
    return {
        "photo": path.name,
        "predictions": [[labels[each], float(probabilities[each])] for each in probabilities.argsort()[::-1][:5]],
        "values": values,
        "flags": {flag.name: flag.reason.format(values[flag.name]) for flag in FLAGS if flag.raised(values[flag.name])},
    }


def check_flags(args, classifier, model) -> dict:
    """How often each flag is raised on test images, and how often the model is right with it and without it."""
    test = _study.cifar10(args)[1]
    images = np.asarray(classifier.preprocess(test.images[: args.check_images]))
    seen = look_at_all(args, "CIFAR-10", model, images, classifier.about["sha256"])
    right = seen["probabilities"].argmax(-1) == test.labels[: len(images)]
    raised = {flag.name: flag.raised(seen[flag.name]) for flag in FLAGS}
    raised["any of them"] = np.any(list(raised.values()), axis=0)
    return {
        name: {
            "raised": _study.mean_and_interval(there),
            "accuracy with it": _study.mean_and_interval(right[there]) if there.any() else None,
            "accuracy without it": _study.mean_and_interval(right[~there]) if not there.all() else None,
        }
        for name, there in raised.items()
    }


# What is written.


def verdict(each) -> str:
    return "\n".join(["guessing?", *each["flags"]] if each["flags"] else ["no flag"])


def row(view, heatmap, each) -> list:
    return [view, heatmap, (view, heatmap), [tuple(prediction) for prediction in each["predictions"]]]


def table(reports) -> str:
    rows = [
        [
            each["photo"],
            f"{each['predictions'][0][0]}, {each['predictions'][0][1]:.1%}",
            "; ".join(each["flags"]) or "none",
        ]
        for each in reports
    ]
    return _study.markdown(["photograph", "most likely class", "flags"], rows)


def check_table(args, check) -> str:
    def cell(value):
        if value is None:
            return ""
        interval = f" ± {100 * value['interval']:.1f}" if value["count"] > 1 else ""
        return f"{100 * value['mean']:.1f}{interval} % of {value['count']:,}"

    rows = [[name, *map(cell, values.values())] for name, values in check.items()]
    header = ["flag", "raised", "right with it", "right without it"]
    return f"The flags on {args.check_images:,} test images of CIFAR-10, model `{args.model}`:\n\n" + _study.markdown(
        header, rows
    )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #ddd; padding: 1rem 0; }
img { max-width: 100%; }
.guessing { color: #c2403d; font-weight: bold; }
footer { border-top: 1px solid #ddd; color: #6a6a6a; font-size: 0.85rem; }
"""


def page(args, reports) -> str:
    """One HTML file with everything in it; whatever comes from outside is escaped."""
    say = html.escape
    articles = []
    for each in reports:
        picture = base64.b64encode(each["figure"].read_bytes()).decode()
        reasons = "".join(f"<li><b>{say(name)}</b>: {say(reason)}.</li>" for name, reason in each["flags"].items())
        flags = f'<p class="guessing">The model may be guessing:</p><ul>{reasons}</ul>' if reasons else ""
        label, probability = each["predictions"][0]
        articles.append(
            f"<article><h2>{say(each['photo'])}</h2><p>{say(label)}, {probability:.1%}</p>{flags}"
            f'<img alt="{say(each["photo"])}: image, heatmap, overlay and the most likely classes" '
            f'src="data:image/png;base64,{picture}"></article>'
        )
    environment = _study.environment()
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What the model sees</title>'
        f"<style>{STYLE}</style></head><body><h1>What the model sees</h1>{''.join(articles)}"
        f"<footer><p>Model {say(args.model)}, Grad-CAM. {say(environment['device'])}; {say(versions)}.</p></footer>"
        "</body></html>\n"
    )


if __name__ == "__main__":
    main()
