"""The leaderboard's tables, pictures and its section of experiments/README.md, all from its rows."""

import csv
import io

import numpy as np

from experiments import _study
from jaxcam import _files, plot

SHOWN = ["grad_cam", "guided_grad_cam", "rise", "eigen_cam", "saliency", "random_cam"]  # in the section's table
MARKS = {"shapes": "pointing game", "photographs": "pointing game"}
WHAT = {
    "shapes": "Shapes that decide the class, ResNet-18 of width 8.",
    "cifar10": "Test images that the bundled model classifies correctly.",
    "photographs": "Two objects pasted on a photograph, EfficientNet-Lite0; the target is the one that it names.",
}


def best_first(rows, name) -> list[dict]:
    return sorted((row for row in rows if row["data"] == name), key=lambda row: -row["rank"])


def origin(run) -> str:
    """Which run a data set's rows come from."""
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items() if name in ("jax", "flax"))
    images = run.get("images", run["settings"]["images"])
    kept = "; kept from an earlier run, methods that changed since have their old numbers" if run.get("kept") else ""
    return f"{images} images; {run['device']}, shared with other work; {versions}{kept}."


ARROWS = {"high": "↑", "low": "↓", "near zero": "→ 0", "describes": ""}


def write_tables(folder, rows, runs, better) -> None:
    """table.md, a table for each data set, best first; table.csv, everything with its interval."""
    lines = [
        "Mean ± half the 95 % interval over images; the mean rank (1: always best) is over the columns with an arrow.\n"
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        own = best_first(rows, name)
        shown = [
            (column, ARROWS[each]) for column, each in better.items() if any(column in row["values"] for row in own)
        ]
        lines += [f"## {name}\n", f"{WHAT[name]} {origin(runs[name])}\n"]
        titles = ["method", "mean rank ↑", "forward passes", *(f"{column} {arrow}".strip() for column, arrow in shown)]
        lines += ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
        for row in own:
            cells = [interval(row["values"][column]) if column in row["values"] else "" for column, _ in shown]
            lines.append(f"| `{row['method']}` | {row['rank']:.2f} | {row['passes']:.1f} | " + " | ".join(cells) + " |")
        lines.append("")
    _files.write(folder / "table.md", "\n".join(lines))
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow(["data", "method", "rank", "forward passes", "metric", "mean", "95 % interval"])
    for row in rows:
        for column, value in row["values"].items():
            numbers = [f"{each:.5g}" for each in (row["rank"], row["passes"])]
            measured = [f"{value['mean']:.5g}", f"{value['interval']:.5g}"]
            writer.writerow([row["data"], row["method"], *numbers, column, *measured])
    _files.write(folder / "table.csv", content.getvalue())


def interval(value) -> str:
    return f"{value['mean']:.3f} ± {value['interval']:.3f}"


def quality_against_cost(rows):
    points = {row["data"]: {} for row in rows}
    for row in rows:
        if "@" not in row["method"]:
            points[row["data"]][row["method"]] = row["passes"], row["rank"]
    return plot.scatter(points, xlabel="cost, forward passes", ylabel="quality, mean rank over the metrics", log_x=True)


def pasted_picture(path, views, masks, heatmaps, labels) -> None:
    """The first pasted photographs: where the target is, and where each method looks."""
    rows = [
        [view, (view, np.float32(mask)), *((view, np.asarray(maps[index])) for maps in heatmaps.values())]
        for index, (view, mask) in enumerate(zip(views, masks, strict=True))
    ]
    figure = plot.gallery(rows, columns=["image", "mask", *heatmaps], labels=labels, side=1.3)
    _study.save_jpeg(figure, path)


def page(rows, runs) -> dict[str, str]:
    """The study's sentence and section."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    found = {name: {row["method"]: row for row in rows if row["data"] == name} for name in names}
    places = ", ".join(f"{found[name]['grad_cam']['rank']:.2f} on {name}" for name in names)
    cost = max(found[name]["grad_cam"]["passes"] for name in names)
    answer = f"`grad_cam`: mean rank {places} (1: always best), for {cost:.1f} forward passes at most."
    lines = ["| | " + " | ".join(f"{name}: {what}" for name in names for what in ("rank", "passes", "ROAD")) + " | "]
    lines[0] += " | ".join(f"{name}: pointing game" for name in names if name in MARKS) + " |"
    lines.append("|---|" + "--:|" * (3 * len(names) + len(MARKS.keys() & set(names))))
    for method in SHOWN:
        own = [found[name][method] for name in names]
        cells = [cell for row in own for cell in (f"{row['rank']:.2f}", f"{row['passes']:.1f}", short(row, "ROAD"))]
        cells += [short(row, MARKS[row["data"]]) for row in own if row["data"] in MARKS]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    best = [
        f"- {name}: " + ", ".join(f"`{row['method']}` {row['rank']:.2f}" for row in top(rows, name)) for name in names
    ]
    runs_of = [f"- {name}: {WHAT[name]} {origin(runs[name])}" for name in names]
    section = [
        "`python -m experiments.leaderboard --data-dir DIR [--photos DIR]`. Every method through every metric; the "
        "rank is the mean over the judging metrics, from 0 (always worst) to 1 (always best).\n",
        *runs_of,
        "\nThe best five by mean rank:\n",
        *best,
        "\nMean ± half the 95 % interval over images:\n",
        *lines,
        "\n[Which to take](../docs/choosing-a-method.md), [tables](../results/leaderboard/table.md), "
        "[every number](../results/leaderboard/table.csv).\n",
        "![quality against cost](../results/leaderboard/quality-against-cost.png)\n",
        "Photographs with the target's mask, and where each method looks (maps clipped at their 99th percentile):\n",
        "![pasted photographs](../results/leaderboard/pasted.jpg)",
    ]
    return {"answer": answer, "section": "\n".join(section)}


def short(row, column) -> str:
    value = row["values"][column]
    return f"{value['mean']:.2f} ± {value['interval']:.2f}"


def top(rows, name) -> list[dict]:
    return best_first(rows, name)[:5]
