"""Does a heatmap reveal that a CIFAR-10 classifier took a shortcut, and from which strength of it on?

    python -m experiments.bias --data-dir DIR

Training frogs get a bright yellow square in their top left corner. A ResNet-18 with CIFAR stem is trained without it,
with it on all frogs, for each size, and with the largest square on a part of them, from each seed (Muon, cosine
schedule, no augmentation, which would move the square). How far does the square decide about "frog"? How much of each
method's heat for "frog" lies on it, how often is the hottest spot there, and does masking patches lower the confidence
as the map says? Writes metrics.json, table.md, found-*.png and faithful-*.png for Grad-CAM and for the other methods,
and for each size examples-SIZEpx.png.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _report, _statistics, _study
from experiments.train_cifar10 import MEAN, STD
from jaxcam import _files, data, metrics, plot, train

FROG = data.CIFAR10_LABELS.index("frog")
NORMALIZE = train.Normalization(MEAN, STD)
STAGES = ("layer1", "layer2", "layer3", "layer4")
# The original: one run of five epochs, a square of 4 px; its training loss, and about this test accuracy.
ORIGINAL = {"standard": {"loss": 0.554}, "biased": {"loss": 0.564}}
ORIGINAL_ACCURACY = "about 0.75"
WHERE = {"mass": metrics.energy_pointing_game, "hottest spot": metrics.pointing_game}
FAITHFUL = "correlation with masking"
WINDOW = 4  # side of a masked patch, in pixels


COMMAND = "python -m experiments.bias --data-dir DIR --dtype bfloat16"


def methods(args) -> dict:
    """Maps `(model, images, targets) -> [n, h, w]` by name."""

    def of_pixels(function, **options):
        return lambda model, *given: jaxcam.heatmap(function(model, *given, **options), percentile=100)

    def at(layer):
        return lambda model, *given: jaxcam.grad_cam(replace(model, layers=(layer,)), *given)

    if args.smoke:
        return {"Grad-CAM, layer4": at("layer4"), "occlusion": of_pixels(jaxcam.occlusion, window=16, stride=16)}
    return {
        **{f"Grad-CAM, {layer}": at(layer) for layer in (*STAGES, args.layer)},
        "Guided Grad-CAM": of_pixels(jaxcam.guided_grad_cam),
        "integrated gradients": of_pixels(jaxcam.integrated_gradients, num_steps=args.num_steps, chunk_size=256),
        "LRP": of_pixels(jaxcam.lrp),
        "occlusion": of_pixels(jaxcam.occlusion, window=WINDOW, stride=WINDOW),
        "FullGrad": jaxcam.full_grad,
    }


def arguments(argv):
    on_cpu = jax.default_backend() == "cpu"
    parser = _study.arguments("bias", __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4], help="sides of the square, in pixels")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[0.25, 0.5, 0.75], help="of the frogs, with the largest square"
    )
    parser.add_argument("--epochs", type=int, default=2, help="the training loss is then near the original's")
    parser.add_argument("--width", type=int, default=16 if on_cpu else 64, help="features of the first stage")
    parser.add_argument("--batch-size", type=int, default=64)
    _study.add_dtype(parser)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="peak of the cosine schedule")
    parser.add_argument("--images", type=int, default=200 if on_cpu else 1000, help="explained test frogs, of 1,000")
    parser.add_argument("--num-steps", type=int, default=16 if on_cpu else 50, help="of integrated gradients")
    parser.add_argument("--layer", default="layer4.1.conv2", help="the original's, of Grad-CAM and Guided Grad-CAM")
    args = parser.parse_args(argv)
    if args.smoke:
        args.seeds, args.sizes, args.shares, args.epochs = [0, 1], [4], [], 1
        args.width, args.images, args.num_steps, args.layer = 4, 12, 4, "layer4.0.conv2"
    return args


def main(argv=None):
    args = arguments(argv)
    train_data, test_data = _study.cifar10(args)
    module = _study.resnet18(args, width=args.width, dtype=jnp.dtype(args.dtype))
    schedule = train.cosine(args.learning_rate, args.epochs * (len(train_data.images) // args.batch_size))
    optimizer = train.muon(schedule, num_iterations=3)  # one for all: compiled once

    def trained(seed, size, share):
        """The model trained with squares of this size (zero: without) on a share of the frogs, and its last record."""
        state, history = train.fit(
            module,
            data.with_square(train_data, FROG, size, share=share) if size else train_data,
            test_data,
            optimizer=optimizer,
            optimizer_settings={name: getattr(args, name) for name in ("learning_rate", "epochs")},
            num_epochs=args.epochs,
            normalize=NORMALIZE,
            batch_size=args.batch_size,
            augment=False,
            seed=seed,
            checkpoint_dir=args.output / "checkpoints" / named(seed, size, share),
        )
        return jaxcam.tap(module.clone(dtype=jnp.float32), state.variables, args.layer), history[-1]

    def one(seed, size, share):
        model, record = trained(seed, size, share)
        squares = {}
        for tested in [size] if size else args.sizes:
            explained = heat(args, model, test_data, tested, description=f"{named(seed, size, share)}, {tested} px")
            squares[str(tested)] = decisions(model, test_data, tested) | explained
        return {"training": record, "squares": squares}

    settings = {
        name: getattr(args, name)
        for name in ("sizes", "epochs", "width", "batch_size", "dtype", "learning_rate", "images", "num_steps", "layer")
    }
    largest = max(args.sizes)
    kinds = [(0, 0.0), *((size, 1.0) for size in args.sizes), *((largest, share) for share in args.shares)]
    runs = {
        (seed, *kind): _study.part(args, named(seed, *kind), partial(one, seed, *kind), **settings)
        for seed in args.seeds
        for kind in kinds
    }

    def summary(kind, tested):
        return over_seeds([runs[seed, *kind] for seed in args.seeds], tested)

    results = {size: {"standard": summary((0, 0.0), size), "biased": summary((size, 1.0), size)} for size in args.sizes}
    strengths = {0.0: results[largest]["standard"]}
    strengths |= {share: summary((largest, share), largest) for share in sorted(args.shares)}
    strengths |= {1.0: results[largest]["biased"]}
    shares = {size: area(size, test_data) for size in args.sizes}
    found = {"squares": results, "strengths": strengths, "largest": largest, "shares": shares, "original": ORIGINAL}
    _study.write_metrics(args, found)
    _files.write(args.output / "table.md", tables(args, results, strengths, shares))
    for file, what in (("found", "hottest spot"), ("faithful", FAITHFUL)):
        for kind, group in (("grad_cam", "Grad-CAM by layer"), ("others", "Other methods")):
            own = [name for name in methods(args) if name.startswith("Grad-CAM") == (kind == "grad_cam")]
            plot.save(against_strength(strengths, own, what, group), args.output / f"{file}-{kind}.png")
    for size in args.sizes:
        path = args.output / f"examples-{size}px.png"
        if not path.exists():
            standard, biased = (trained(args.seeds[0], *kind)[0] for kind in ((0, 0.0), (size, 1.0)))
            plot.save(examples(args, standard, biased, test_data, size), path)
    _report.publish_results(args, "bias")
    print(f"{len(runs)} models; written to {args.output}")


def answer(found) -> str:
    """How often some methods' hottest spot is on the largest square, when all frogs have it."""
    means = {name: each["mean"] for name, each in found["strengths"]["1.0"].items() if name != "loss"}
    names = (f"Grad-CAM, {found['settings']['layer']}", "Grad-CAM, layer4", "LRP")
    spots = {name: f"{name}, hottest spot (square)" for name in names}
    shares = ", ".join(f"{name} {100 * means[spot]:.0f} %" for name, spot in spots.items() if spot in means)
    return f"Frogs with the hottest spot on a square of {found['largest']} px: {shares}."


def named(seed, size, share) -> str:
    return f"seed-{seed}-square-{size}-of-{share:g}" if size else f"seed-{seed}-standard"


def decisions(model, test_data, size):
    """How far the square decides: accuracies, and how often it makes a frog of what was none before."""
    predict = partial(train.predict, model.network.module, model.variables, normalize=NORMALIZE)
    batch_size = min(500, len(test_data.images))
    clean = predict(test_data.images, batch_size=batch_size).argmax(-1)
    marked = predict(data.with_square(test_data, size=size).images, batch_size=batch_size).argmax(-1)
    frogs = test_data.labels == FROG
    values = {
        "test accuracy": clean == test_data.labels,
        "accuracy on clean frogs": clean[frogs] == FROG,
        "accuracy on frogs with the square": marked[frogs] == FROG,
        "other classes called frog": clean[~frogs] == FROG,
        "other classes called frog only with the square": (marked == FROG)[~frogs & (clean != FROG)],
    }
    return {name: _statistics.over_images(each) for name, each in values.items()}


def heat(args, model, test_data, size, *, description):
    """Where the heat for "frog" lies on test frogs with the square, and in the same place on them without it; and
    whether it lies where masking lowers the confidence, with the square."""
    frogs = test_data.images[test_data.labels == FROG][: args.images]
    pictures = {"square": with_square(frogs, size), "no square": frogs}
    mask = np.zeros(frogs.shape[1:3], bool)
    mask[:size, :size] = True

    def explain(images, faithful):
        masks, images = jnp.broadcast_to(mask, images.shape[:3]), NORMALIZE(images)
        values = {}
        for name, method in methods(args).items():
            maps = method(model, images, FROG)
            values |= {f"{name}, {where}": measure(maps, masks) for where, measure in WHERE.items()}
            if faithful:
                options = {"window": WINDOW, "chunk_size": 256}
                values[f"{name}, {FAITHFUL}"] = metrics.occlusion_correlation(model, images, maps, FROG, **options)
        return values

    summaries = {}
    for name, images in pictures.items():
        explained = partial(explain, faithful=name == "square")
        values = _study.batched(explained, images, size=batch(args), description=f"{description}, {name}")
        summaries |= {f"{each} ({name})": _statistics.over_images(values[each]) for each in values}
    return summaries


def with_square(images, size):
    return data.with_square(data.Split(images, np.full(len(images), FROG)), size=size).images


def batch(args):
    """Images in one batch of explanations: one size everywhere, so that each method is compiled once."""
    return 12 if args.smoke else 50


def area(size, test_data):
    """The square's share of the image; and of the mass and the hottest pixels of a map whose only heat is in the corner
    cell, the most that a map of 4x4 cells (for 32 pixels) can put on it."""
    shape = test_data.images.shape[1:3]
    mask = np.zeros((1, *shape), bool)
    mask[:, :size, :size] = True
    cells = jnp.zeros((1, shape[0] // 8, shape[1] // 8)).at[:, 0, 0].set(1)
    corner = jax.image.resize(cells, mask.shape, "linear")
    return {"area": float(mask.mean())} | {what: float(measure(corner, mask)[0]) for what, measure in WHERE.items()}


def over_seeds(parts, tested):
    """What all seeds give for one kind of model, on squares of the size `tested`."""
    own = [part["squares"][str(tested)] for part in parts]
    found = {measure: _statistics.over_seeds([each[measure] for each in own]) for measure in own[0]}
    return found | {"loss": [part["training"]["loss"] for part in parts]}


def tables(args, results, strengths, shares):
    """Decisions and heat for each size of the square; then what shows how strong a shortcut."""
    show = _statistics.with_seeds
    text = [
        f"Seeds {args.seeds}, {args.epochs} epochs at width {args.width}, {args.images} frogs. Means with half their "
        "95 % interval over images and, in parentheses, over seeds where there are several; heat is that for "
        '"frog", on test frogs with the square and, in the same place, on the same frogs without it.\n'
    ]
    for size, models in results.items():
        share = shares[size]
        text.append(
            f"## A square of {size} px\n\nIt covers {share['area']:.2%} of the image; a map of 4x4 cells "
            f"with heat in the corner cell alone has {share['mass']:.1%} of its mass there, and "
            f"{share['hottest spot']:.0%} of its hottest spot.\n"
        )
        original = " and ".join(f"{each['loss']}" for each in ORIGINAL.values())
        losses = [f"{np.mean(each['loss']):.3f}" for each in models.values()]
        rows = [[f"training loss (original, 4 px: {original})", *losses]]
        for measure in (name for name in models["biased"] if name != "loss" and "(" not in name):
            beside = f" (original: {ORIGINAL_ACCURACY})" if measure == "test accuracy" else ""
            rows.append([measure + beside, *(show(each[measure]) for each in models.values())])
        text.append(_study.markdown(["", *models], rows))
        columns = [(what, model, picture) for what in WHERE for model, picture in PICTURES]
        columns += [(FAITHFUL, model, "square") for model in models]
        header = ["heat", *(f"{what}: {model}, {picture}" for what, model, picture in columns)]
        rows = [
            [name, *(show(models[model][f"{name}, {what} ({picture})"]) for what, model, picture in columns)]
            for name in methods(args)
        ]
        text.append(_study.markdown(header, rows))
    size = max(results)
    header = ["", *(f"{share:.0%}" for share in strengths)]
    decided = ("accuracy on clean frogs", "other classes called frog only with the square")
    rows = [[name, *(show(each[name]) for each in strengths.values())] for name in decided]
    rows += [
        [f"{name}: {what}", *(show(each[f"{name}, {what} (square)"]) for each in strengths.values())]
        for what in ("hottest spot", FAITHFUL)
        for name in methods(args)
    ]
    title = f"## What tells how strong a shortcut: the share of the frogs with a square of {size} px"
    text.append(f"{title}\n\n{_study.markdown(header, rows)}")
    return "\n".join(text)


PICTURES = (("standard", "square"), ("biased", "square"), ("biased", "no square"))


def against_strength(strengths, names, what, group):
    """A measure of these methods' heat against the share of the frogs with the square, on frogs that have it."""
    question, ylabel = {
        "hottest spot": ("is the hottest spot on the square?", "share of frogs whose hottest spot is on the square"),
        FAITHFUL: ("hot where masking changes the answer?", FAITHFUL),
    }[what]
    means, intervals = {}, {}
    for name in names:
        own = [each[f"{name}, {what} (square)"] for each in strengths.values()]
        means[name] = [each["mean"] for each in own]
        intervals[name] = [each["runs_interval"] or each["interval"] for each in own]
    x, xlabel = [100 * share for share in strengths], "training frogs with the square, %"
    limits = (0.0, 1.0) if what == "hottest spot" else (-1.0, 1.0)
    labels = {"xlabel": xlabel, "ylabel": ylabel, "title": f"{group}: {question}"}
    return plot.curves(means, x=x, intervals=intervals, limits=limits, **labels)


def examples(args, standard, biased, test_data, size):
    """Test frogs with the square, and the heat of both models; the second Grad-CAM is that of the original's layer."""
    images = with_square(test_data.images[test_data.labels == FROG][:6], size)
    all_methods = methods(args)
    columns = {"Grad-CAM, standard": ("Grad-CAM, layer4", standard), "Grad-CAM, biased": ("Grad-CAM, layer4", biased)}
    columns |= {"Grad-CAM, inside": (f"Grad-CAM, {args.layer}", biased)} if not args.smoke else {}
    columns |= {name: (name, biased) for name in all_methods if not name.startswith("Grad-CAM")}
    maps = {}
    for title, (name, model) in columns.items():
        explain = partial(seen, all_methods[name], model)
        maps[title] = _study.batched(explain, images, size=batch(args), description=f"examples, {title}")
    rows = [[image, *((image, heat[row]) for heat in maps.values())] for row, image in enumerate(images)]
    return plot.gallery(rows, columns=["image", *maps], side=1.4, colormap="jet", alpha=0.5)


def seen(method, model, images):
    return method(model, NORMALIZE(images), FROG)


if __name__ == "__main__":
    main()
