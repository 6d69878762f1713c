"""What the transport study writes: its tables, its figures, and its section of experiments/README.md."""

import numpy as np
from PIL import Image

from experiments import _statistics, _study
from jaxcam import _files, plot


def show(value) -> str:
    return _statistics.plus_minus(value, 2)


def percent(value) -> str:
    """Of a share; where all images are alike their spread says nothing, and how many they are stands there instead."""
    if value["std"] == 0:
        return f"{100 * value['mean']:.0f} (of {value['count']})"
    return f"{100 * value['mean']:.1f} ± {100 * value['interval']:.1f}"


def crossed(first, rows, cell) -> str:
    """A table of nested dictionaries: `rows[row][column]`, each shown by `cell`."""
    columns = list(next(iter(rows.values())))
    body = [[name, *(cell(row[column]) for column in columns)] for name, row in rows.items()]
    return _study.markdown([first, *columns], body)


def pearson(rows, of="all") -> dict:
    return {name: {column: row[column]["Pearson"][of] for column in row} for name, row in rows.items()}


def tables(args, results) -> list[str]:
    """Everything that was measured, a sentence before each table."""
    groups, agreement, stability = results["groups"], results["agreement"], results["stability"]
    first, plain = groups["first label"]["all"], agreement["32 px"]
    count = plain[next(iter(plain))]["Pearson"]["all"]["count"]
    names = [name for name in groups["first label"] if name != "all"]
    by_class = {pair: {name: row["Pearson"][name] for name in ["all", *names]} for pair, row in plain.items()}
    stable_by_class = {
        f"{method}, {name}": row["Pearson"] for name, methods in stability.items() for method, row in methods.items()
    }
    return [
        f"**{results['weights']}.** CIFAR-10's pixels are JPEG re-encoded. ± is half of a 95 % interval over images.\n",
        f"Predictions in the class's group of ImageNet labels, in percent of {first['count']:,} images. A label drawn "
        f"by lot is in it {100 * results['chance']:.1f} % of the time, one of the five groups 20 %:\n",
        crossed("reading", groups, percent),
        f"The first label again, when the small image loses more ({args.altered} images of each class):\n",
        crossed("image", results["altered"], percent),
        f"Agreement of the three maps for the predicted label: Pearson correlation, {count} images, Score-CAM of "
        f"{args.channels} channels:\n",
        crossed("maps", by_class, show),
        "The same when the small image loses more, still for the label of the image as it was:\n",
        crossed("image", pearson(agreement), show),
        "Stability: the map of the altered image against that of the image as it was, for the same label:\n",
        crossed("map, image", stable_by_class, show),
        "How often the prediction stays the same, in percent:\n",
        crossed("image", results["same prediction"], percent),
        "Image by image: what it is taken for, where each map is hottest, and how much of the image is at least half "
        "as hot:\n",
        one_by_one(results["images"]),
        ablation(args, results["ablation"]),
        *(photographs(results["photographs"]) if "photographs" in results else []),
    ]


def one_by_one(images) -> str:
    methods = [name for name in images[0] if name not in ("class", "label", "probability", "in its group")]
    rows = [
        [
            each["class"],
            each["label"] + ("" if each["in its group"] else " (not in the group)"),
            f"{100 * each['probability']:.0f} %",
            *(each[method] for method in methods),
        ]
        for each in images
    ]
    return _study.markdown(["class", "predicted", "probability", *methods], rows)


def ablation(args, found) -> str:
    rows = {}
    for name, value in found.items():
        if name != "channels":
            channels, rule = name.split(", ")
            rows.setdefault(f"{channels} channels", {})[rule] = value
    return (
        f"Score-CAM of some channels against Score-CAM of all {found['channels']}: Pearson correlation of the maps, "
        f"{args.ablated} images, by what chooses the channels (`max_channels=` takes the largest mean):\n\n"
        + crossed("channels", rows, show)
    )


def photographs(found) -> list[str]:
    count = found["probability"]["all pixels"]["all"]["count"]
    rows = {}
    for name, agreement in pearson(found["agreement"]).items():
        stable = {method: row["Pearson"]["all"] for method, row in found["stability"].get(name, {}).items()}
        same = found["same prediction"].get(name)
        rows[name] = [
            percent(same["all"]) if same else "",
            percent(found["probability"][name]["all"]),
            *map(show, agreement.values()),
            *(show(stable[method]) if stable else "" for method in next(iter(found["stability"].values()))),
        ]
    pairs = list(next(iter(found["agreement"].values())))
    stable = [f"{method}, stability" for method in next(iter(found["stability"].values()))]
    header = ["pixels a side", "same label, %", "its probability, %", *pairs, *stable]
    return [
        f"{len(found['names'])} photographs, five squares of each ({count} views, so the intervals are too small), "
        "taken down to fewer pixels and up again. Agreement of two maps, and stability of each against the map of all "
        "pixels (Pearson), for the label of all pixels:\n",
        _study.markdown(header, [[name, *row] for name, row in rows.items()]),
    ]


def page(args, results) -> dict[str, str]:
    """The study's sentence and section of experiments/README.md."""
    first = results["groups"]["first label"]
    names = sorted((name for name in first if name != "all"), key=lambda name: -first[name]["mean"])
    best, worst = names[0], names[-1]
    right, most, least = (f"{100 * first[name]['mean']:.0f} %" for name in ("all", best, worst))
    lot = f"{100 * results['chance']:.1f} %"
    answer = f"Partly: {right} of the first labels are right (by lot {lot}), from {most} ({best}) to {least} ({worst})."
    pictures = ["examples", "groups", "stability", *(["photos"] if "photographs" in results else [])]
    options = " --photos DIR" if args.photos else ""
    command = f"`python -m experiments.transport --data-dir DIR{options}`"
    section = [
        f"{command}; {_study.environment()['device']}. The original showed five images, one of each class; "
        "here is such a table, and what five images cannot tell ([the tables alone](../results/transport/table.md); "
        "Spearman and IoU are in [metrics.json](../results/transport/metrics.json)).\n",
        *tables(args, results),
        *(f"![{name}](../results/transport/{name}.png)\n" for name in pictures),
    ]
    return {"answer": answer, "section": "\n".join(section)}


# Figures.


def write(args, results, images, maps) -> None:
    _files.write(args.output / "table.md", "\n".join(tables(args, results)))
    plot.save(examples(args, results, images, maps), args.output / "examples.png")
    plot.save(groups_figure(results), args.output / "groups.png")
    plot.save(stability_figure(results), args.output / "stability.png")


def titled(title, results) -> str:
    return f"{title} (random weights)" if results["weights"] == _study.RANDOM else title


def heats(maps, prefix="heat") -> dict:
    """Each method's maps, as they were saved."""
    start = f"{prefix}: "
    return {name.removeprefix(start): np.float32(each) for name, each in maps.items() if name.startswith(start)}


def examples(args, results, images, maps):
    """The images of the table: what each is taken for, and the three maps."""
    rows, labels, found = [], [], heats(maps)
    half = len(results["images"]) // 2
    order = [index for row in range(half) for index in (row, row + half)]  # a class's two images beside each other
    for index in order:
        each = results["images"][index]
        image = np.asarray(Image.fromarray(images[index]).resize((args.size, args.size), Image.Resampling.BICUBIC))
        rows.append([image, *((image, heat[index]) for heat in found.values())])
        there = "in its group" if each["in its group"] else "not in its group"
        labels.append(f"{each['class']}\n{each['label']}, {each['probability']:.0%}\n{there}")
    title = titled("CIFAR-10 through ImageNet's eyes", results)
    return plot.gallery(rows, columns=["image", *found], labels=labels, title=title, side=0.82, across=2)


def pair(value) -> tuple[float, float]:
    return value["mean"], value["interval"]


def groups_figure(results):
    groups = {reading: {name: pair(value) for name, value in row.items()} for reading, row in results["groups"].items()}
    less = {name: pair(row["all"]) for name, row in results["altered"].items()}
    title = titled("Is the prediction in the right group?", results)
    return plot.intervals(groups | {"first label, altered images": less}, xlabel="share of the images", title=title)


def stability_figure(results):
    agree = {
        f"two methods, {name}": {each: pair(value) for each, value in row.items()}
        for name, row in pearson(results["agreement"]).items()
    }
    stable = {
        f"before and after, {name}": {each: pair(value) for each, value in row.items()}
        for name, row in pearson(results["stability"]).items()
    }
    title = titled("How alike are the maps?", results)
    return plot.intervals(agree | stable, xlabel="Pearson correlation", title=title)


def photographs_figure(results, classifier, views, looks, alterations):
    """Of each photograph the middle view, with fewer and fewer pixels, and Grad-CAM for the label of all pixels."""
    rows, labels, side = [], [], views.shape[1]
    for start, name in zip(range(0, len(views), 5), results["photographs"]["names"], strict=True):
        index = start + 2
        row = [views[index], (views[index], np.float32(looks["heat: Grad-CAM"][index]))]
        kept = [looks["probability: "][index]]
        for altered, alter in alterations.items():
            small = alter(Image.fromarray(views[index])).resize((side, side), Image.Resampling.BICUBIC)
            row.append((np.asarray(small), np.float32(looks[f"heat {altered}: Grad-CAM"][index])))
            kept.append(looks[f"probability: {altered}"][index])
        rows.append(row)
        surely = ", ".join(f"{100 * each:.0f}" for each in kept)
        labels.append(f"{classifier.labels[looks['label'][index]]}\n{surely} %\n{name}")
    title = titled("Grad-CAM as pixels are lost", results)
    columns = ["photograph", "all pixels", *alterations]
    return plot.gallery(rows, columns=columns, labels=labels, title=title, side=0.85)
