"""Do explanations of the bundled model depend on what it has learned?

    python -m experiments.sanity --data-dir DIR

The tests of Adebayo et al. for every method, on the first test images that the model classifies correctly: the rank
correlation of its maps with those of the model with random weights, of a twin that has learned random labels by heart,
for another class, and for the image and the model both shifted by a constant. Each method is saved as it is done, so an
interrupted run goes on where it stopped. Writes metrics.json, table.md and sanity.png.
"""

from dataclasses import replace

import numpy as np

from experiments import _cases, _report, _statistics, _study, leaderboard
from jaxcam import _files, plot

COLUMNS = {
    "random weights, from the output down": "cascading randomisation",
    "random weights in one layer": "independent randomisation",
    "random labels": "label randomisation",
    "another class": "random logit",
    "shifted image and model": "input invariance",
}
WEIGHTS, LABELS, CLASS, SHIFTED = (list(COLUMNS)[i] for i in (0, 2, 3, 4))
KNOWLEDGE = WEIGHTS, LABELS, CLASS
PASSED = 0.5  # of either sign: a map and its like without the knowledge share a quarter of their ranks' variance


COMMAND = "python -m experiments.sanity --data-dir DIR"


def main(argv=None):
    parser = _study.arguments("sanity", __doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="explained test images")
    parser.add_argument("--twin-epochs", type=int, default=40, help="of learning shuffled labels")
    parser.add_argument("--methods", nargs="+", default=leaderboard.NAMES, choices=leaderboard.NAMES, metavar="NAME")
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.twin_epochs, args.methods = 4, 1, ["grad_cam"]
    args.rerun_on = ["cifar10"]

    case = replace(_cases.cifar10_case(args), large=False)
    found = leaderboard.compared(case, args.methods, args.output / "parts", list(COLUMNS.values()))
    metrics = [leaderboard.COLUMNS[column][0] for column in COLUMNS.values()]
    places = [found.metrics.index(name) for name in metrics]
    rows = {name: {} for name in args.methods}
    for method, values in zip(found.methods, found.values, strict=True):
        name = method.split()[0]  # several draws of random_cam
        for column, place in zip(COLUMNS, places, strict=True):
            rows[name].setdefault(column, []).append(values[place])
    rows = {
        name: {column: _statistics.over_images(np.mean(drawn, axis=0)) for column, drawn in row.items()}
        for name, row in rows.items()
        if row
    }
    _study.write_metrics(args, {"methods": rows, "images": len(case.images)})
    _files.write(args.output / "table.md", table(rows, len(case.images)))
    plot.save(figure(rows), args.output / "sanity.png")
    _report.publish_results(args, "sanity")
    print(f"{len(rows)} methods; written to {args.output}")


def answer(found) -> str:
    rows = found["methods"]
    passed = [name for name, row in rows.items() if passes(row)]
    return (
        f"{len(passed)} of {len(rows)} methods change with the weights, the labels and the class alike; "
        f"{sum(kept(row, CLASS) > PASSED for row in rows.values())} hardly see the class."
    )


def kept(row, *columns) -> float:
    """How much of the picture stays, at most, without this knowledge; one that comes back inverted is there too."""
    return max(abs(row[column]["mean"]) for column in columns)


def passes(row) -> bool:
    """Whether a method loses its picture with each of the three kinds of knowledge."""
    return kept(row, *KNOWLEDGE) <= PASSED


def table(rows, count) -> str:
    show = _statistics.plus_minus
    order = sorted(rows, key=lambda name: kept(rows[name], *KNOWLEDGE))
    lines = [[f"`{name}`", *(show(rows[name][column], 2) for column in COLUMNS)] for name in order]
    text = (
        f"Spearman correlation of the maps with those for the model as it is, {count} images; ± is half of the 95 % "
        "interval over images. Of the first four columns zero is best (the mean over layers, of random weights), of "
        "the last one 1. Sorted by the largest, of either sign, of the weights from the output down, the labels and "
        f"the class: a method passes where it is at most {PASSED}.\n"
    )
    return f"{text}\n{_study.markdown(['method', *COLUMNS], lines)}"


def figure(rows):
    """How far a map changes with the labels, against what it keeps without the weights."""
    points = {}
    for name, row in rows.items():
        changed, half = 1 - kept(row, LABELS), row[LABELS]["interval"]
        points[name] = kept(row, WEIGHTS), changed, changed - half, changed + half
    title = "Which maps change with what the model has learned?"
    return plot.scatter({title: points}, xlabel=f"|correlation|, {WEIGHTS}", ylabel=f"1 - |correlation|, {LABELS}")


if __name__ == "__main__":
    main()
