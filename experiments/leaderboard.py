"""Every method through every metric, on images where the right answer is known and on CIFAR-10; CAMs at earlier stages.

    python -m experiments.leaderboard --data-dir DIR [--photos DIR]

Three data sets. On `jaxcam.data.shapes` it trains a small network; on CIFAR-10 it takes the bundled model; of each it
trains a twin on shuffled labels, for the label-randomisation test. The photographs are the pointing game's trick: two
objects, cut out by hand, on a third photograph, for EfficientNet-Lite0 (`_pasted`; scikit-image ships five of the
photographs, the committed run has four more by `--photos`: dog-and-cat.png, dog-cat-small.jpg, horses.jpg, swan.jpg).

Each row of the table is saved as soon as it is measured, so an interrupted run goes on where it stopped, and `--data`
measures some of the data sets and keeps the others' rows. Writes metrics.json, table.md, table.csv,
quality-against-cost.png and pasted.jpg.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxcam
from experiments import _cases, _leaders, _report, _statistics, _study
from experiments._cases import FEW_PASSES, Case
from jaxcam import Comparison, plot, segments
from jaxcam.attribution import METHODS
from jaxcam.metrics import METRICS

# A row is a method, by default at the last stage, or "method@layer".
NAMES = [name for name, row in METHODS.items() if row.needs != "tokens" and row.is_map]
EARLIER = ("grad_cam", "hires_cam", "layer_cam")
PART = 8  # methods that a process compiles before it forgets their programs
FEW = 8  # images for the metrics that run the method many times, with few forward passes each time
CASES = {"shapes": _cases.shapes_case, "cifar10": _cases.cifar10_case, "photographs": _cases.photographs_case}
PICTURED = ["grad_cam", "guided_grad_cam", "rise", "eigen_cam", "integrated_gradients", "saliency"]
DRAWN = "random_cam"  # measured for several draws of its weights
# Column, and the metric with its options, for 32 pixels and for large images; `None` is not measured.
COLUMNS = {
    "pointing game": ("pointing_game", {}, {}),
    "energy pointing game": ("energy_pointing_game", {}, {}),
    "relevance rank": ("relevance_rank_accuracy", {}, {}),
    "relevance mass": ("relevance_mass_accuracy", {}, {}),
    "IoU with mask": ("iou_with_mask", {}, {}),
    "mask AUC": ("mask_auc", {}, {}),
    "MaxBoxAcc": ("max_box_acc", {}, {}),
    "deletion": ("deletion", {"num_steps": 16}, {"num_steps": 8}),
    "insertion": ("insertion", {"num_steps": 16}, {"num_steps": 8}),
    "selectivity": ("selectivity", {}, None),
    "region perturbation": ("region_perturbation", {"window": 4, "num_steps": 16}, {"window": 32, "num_steps": 8}),
    "IROF": ("irof", {}, None),
    "monotonicity": ("monotonicity", {"num_steps": 16}, {"num_steps": 8}),
    "monotonicity correlation": ("monotonicity_correlation", {"num_steps": 16, "num_samples": 4}, None),
    "SensitivityN": ("sensitivity_n", {"num_samples": 16}, None),
    "non-sensitivity": ("non_sensitivity", {}, None),
    "ROAD": ("road", {"fractions": (0.2, 0.4, 0.6, 0.8)}, {"fractions": (0.4,)}),
    "average drop": ("average_drop", {}, {}),
    "average increase": ("average_increase", {}, {}),
    "average gain": ("average_gain", {}, {}),
    "infidelity": ("infidelity", {"normalize": True, "deviation": 0.1, "num_samples": 16}, None),
    "mu-fidelity": ("mu_fidelity", {"num_samples": 48}, None),
    "occlusion correlation": ("occlusion_correlation", {}, None),
    "max-sensitivity": ("max_sensitivity", {"num_samples": 4}, None),
    "cascading randomisation": ("cascading_randomization", {}, None),
    "independent randomisation": ("independent_randomization", {}, None),
    "label randomisation": ("label_randomization", {}, None),
    "average sensitivity": ("average_sensitivity", {"num_samples": 4}, None),
    "local Lipschitz": ("local_lipschitz", {"num_samples": 4}, None),
    "relative output stability": ("relative_output_stability", {"num_samples": 4}, None),
    "random logit": ("random_logit", {}, None),
    "efficient MPRT": ("efficient_mprt", {}, None),
    "input invariance": ("input_invariance", {}, None),
    "Gini": ("gini", {}, {}),
    "entropy": ("entropy", {}, {}),
    "effective area": ("effective_area", {}, {}),
    "Pearson to Grad-CAM": ("pearson", {}, {}),
    "Spearman to Grad-CAM": ("spearman", {}, {}),
    "IoU to Grad-CAM": ("iou_top", {}, {}),
    "SSIM to Grad-CAM": ("ssim", {}, {}),
    "cosine to Grad-CAM": ("cosine", {}, {}),
}
# One of each kind, for a quick look.
SMOKE = (
    "pointing game",
    "deletion",
    "ROAD",
    "max-sensitivity",
    "cascading randomisation",
    "label randomisation",
    "Gini",
)
SMOKE += ("Pearson to Grad-CAM",)
BETTER = {column: METRICS[name].better for column, (name, *_) in COLUMNS.items()}
BETTER["relevance mass"] = "describes"  # it says the same as the energy pointing game


def main(argv=None):
    parser = _study.arguments("leaderboard", __doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="explained images of shapes and of CIFAR-10")
    parser.add_argument("--pasted-images", type=int, default=12, help="explained photographs, at most")
    parser.add_argument("--photos", type=Path, help="folder with more photographs to paste from, and on")
    parser.add_argument(
        "--data", nargs="+", default=list(CASES), choices=CASES, help="what to measure; the rest is kept"
    )
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--epochs", type=int, default=8, help="of training on shapes")
    parser.add_argument("--twin-epochs", type=int, default=40, help="of learning shuffled labels of CIFAR-10")
    parser.add_argument(
        "--rerun-on",
        nargs="*",
        default=["shapes", "cifar10"],
        choices=["shapes", "cifar10"],
        help="data sets on which to measure sanity and max-sensitivity, which run a method some forty times",
    )
    args = parser.parse_args(argv)
    if args.smoke:
        args.images, args.epochs, args.twin_epochs, args.methods = 4, 1, 1, ["saliency"]
        args.rerun_on = ["shapes"]
    if "photographs" in args.data and not _cases.can_paste(args.photos):
        print("Without scikit-image there are no photographs to paste; that data set is left out.")
        args.data = [name for name in args.data if name != "photographs"]
    rows, runs = kept(args)
    for name in args.data:
        case = CASES[name](args)
        rows += measure_all(args, name, case)
        # The settings are those of this run, which other data sets' rows in the same file may not have had.
        runs[name] = {"images": len(case.images), "settings": _study.settings(args), **_study.environment()}
        if name == "photographs":
            pasted_picture(args, case)
    rows.sort(key=lambda row: list(CASES).index(row["data"]))
    _study.write_metrics(args, {"rows": rows, "runs": runs})
    _leaders.write_tables(args.output, rows, runs, BETTER)
    plot.save(_leaders.quality_against_cost(rows), args.output / "quality-against-cost.png")
    if not args.smoke:
        _report.publish(args, "leaderboard", **_leaders.page(rows, runs))
    print(f"{len(rows)} rows; written to {args.output}")


def kept(args) -> tuple[list, dict]:
    """The rows of an earlier run for the data sets that are not measured now, and what is known of that run."""
    path = args.output / "metrics.json"
    if set(args.data) == set(CASES) or not path.exists():
        return [], {}
    found = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["data"] not in args.data]
    whole = {key: found[key] for key in ("settings", "device", "versions")}
    return rows, {row["data"]: {**found.get("runs", {}).get(row["data"], whole), "kept": True} for row in rows}


def measure_all(args, name: str, case: Case) -> list[dict]:
    """A row for each method, and for some at earlier layers: twice `jaxcam.compare`.

    Once on all images; and on few, by methods of few forward passes, with what runs a method some forty times.
    """
    names = list(args.methods)
    names += [f"{each}@{layer}" for each in EARLIER if each in names for layer in case.layers]
    if args.smoke:
        names = [*args.methods, "grad_cam@layer3"] if name == "photographs" else args.methods
    folder = args.output / "parts" / name
    columns = [each for each in COLUMNS if each in SMOKE or not args.smoke]
    again = [each for each in columns if METRICS[COLUMNS[each][0]].needs in ("explain", "method", "twin")]
    whole = compared(case, names, folder, [each for each in columns if each not in again])
    parts = [whole]
    if case.rerun:
        given = {"images": case.images, "targets": case.targets, "masks": case.masks}
        given = {key: None if each is None else each[:FEW] for key, each in given.items()}
        few = replace(case, options=case.options | FEW_PASSES, **given)
        parts.append(compared(few, names, folder / "again", again))
    values = {column: {} for column in COLUMNS}
    for part in parts:
        for k, metric in enumerate(part.metrics):
            column = next(column for column, (name, *_) in COLUMNS.items() if name == metric)
            values[column] = {method: part.values[m, k] for m, method in enumerate(part.methods)}
    return rows_of(name, names, case, {column: each for column, each in values.items() if each}, whole)


def compared(case: Case, names, folder: Path, columns) -> Comparison:
    """The methods on the images, through the metrics of these columns; a part of them at a time.

    Each compiled program takes memory mappings, of which a process may have 65,530: all of these are more.
    """
    for start in range(0, len(names), PART):
        found = compared_at_once(case, names[start : start + PART], folder, columns, partial(print, flush=True))
        for name, error in found.errors.items():
            print(f"{name} is left out: {error}")
        jax.clear_caches()
    return compared_at_once(case, names, folder, columns)  # from the files


def compared_at_once(case: Case, names, folder: Path, columns, progress=None) -> Comparison:
    images, targets = case.images, case.targets
    reference = jaxcam.explain(case.model, images, targets, methods=["grad_cam"], percentile=100)["grad_cam"]
    chosen = {}
    for metric, options, large in map(COLUMNS.get, columns):
        needs, options = METRICS[metric].needs, large if case.large else options
        unknown = (needs == "masks" and case.masks is None) or (needs == "twin" and case.twin is None)
        if options is None or unknown:
            continue
        chosen[metric] = ("describes", partial(alike, metric, reference)) if needs == "maps" else options
    methods = {each: function for name in names for each, function in functions(name, case, images).items()}
    more = {"masks": case.masks, "twin": case.twin, "batch_size": len(images), "output": folder, "progress": progress}
    return jaxcam.compare(case.model, images, targets, methods=methods, metrics=chosen, **more)


def alike(metric, reference, model, images, heatmaps, targets):
    return METRICS[metric].function(heatmaps, reference)


def functions(name: str, case: Case, images) -> dict:
    """A row's method by name, `"METHOD@LAYER"` at another layer; of a drawn one, a method for each draw."""
    method, _, layer = name.partition("@")
    options = dict(case.options.get(method, {}))
    if method == "xrai":  # where images change inside a compiled loop it cannot see them, and keeps these segments
        options["segments"] = segments.felzenszwalb(images)
    function = partial(METHODS[method].function, **options)
    if layer:
        return {name: partial(at_layer, function, layer)}
    if method == DRAWN:
        return {f"{name} {draw}": partial(function, key=jax.random.key(draw)) for draw in range(case.draws)}
    return {name: function}


def at_layer(function, layer, model, images, targets, **options):
    # Not a new tap: that of a metric may do more, such as take a shift off the images.
    return function(replace(model, layers=(layer,)), images, targets, **options)


def rows_of(data: str, names, case: Case, values, costs: Comparison) -> list[dict]:
    """Rows with means, intervals, ranks and costs; draws are averaged image by image."""
    passes = dict(zip(costs.methods, costs.passes, strict=True))
    members = {name: [each for each in passes if each == name or each.startswith(f"{name} ")] for name in names}
    members = {name: each for name, each in members.items() if each}
    table = np.full((len(members), len(values), len(case.images)), np.nan)
    rows = []
    for m, (name, draws) in enumerate(members.items()):
        row = {"data": data, "method": name, "passes": float(np.median([passes[each] for each in draws])), "values": {}}
        for k, (column, of) in enumerate(values.items()):
            drawn = np.array([of[each] for each in draws if each in of])
            if drawn.size:
                table[m, k, : drawn.shape[1]] = drawn.mean(0)
                row["values"][column] = _statistics.over_images(drawn.mean(0))
                if len(draws) > 1:
                    row["values"][column]["draws"] = np.nanmean(drawn, axis=1).tolist()
        rows.append(row)
    zeros = np.zeros(len(rows))
    better = [BETTER[column] for column in values]
    found = Comparison(list(members), list(values), better, table, np.array([row["passes"] for row in rows]), zeros, {})
    for row, rank in zip(rows, found.ranks(), strict=True):
        row["rank"], row["rank_interval"] = float(rank[0]), rank[1:].tolist()
    print(f"{data}: {found.recommendation()}", flush=True)
    return rows


def pasted_picture(args, case) -> None:
    few = slice(0, 6)
    methods = [name for name in PICTURED if name in args.methods]
    chosen = {name: functions(name, case, case.images)[name] for name in methods}
    maps = jaxcam.explain(case.model, case.images, case.targets, methods=chosen, percentile=100)
    maps = {name: each[few] for name, each in maps.items()}
    # To be seen, not measured: few pixels of an attribution are far above all others.
    brightest = {name: np.quantile(each, 0.99, axis=(1, 2), keepdims=True) for name, each in maps.items()}
    maps = {name: np.clip(each / np.maximum(brightest[name], 1e-9), 0, 1) for name, each in maps.items()}
    _leaders.pasted_picture(args.output / "pasted.jpg", case.views[few], case.masks[few], maps, case.labels[few])


if __name__ == "__main__":
    main()
