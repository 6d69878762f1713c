"""Does Grad-CAM reveal that a CIFAR-10 classifier took a shortcut?

    python -m experiments.bias --data-dir DIR

Every training frog gets a bright yellow square in its top left corner. A ResNet-18 with CIFAR stem is trained with and
without it (SGD, learning rate 0.01 falling tenfold every ten epochs, momentum 0.9, no weight decay, batch 128, and no
augmentation, which would move the square), for each seed and size of the square. After every epoch it asks how far the
square decides about "frog", and how much of the heat of Grad-CAM (at `layer4.1.conv2`) and Guided Grad-CAM lies on it;
at the end, whether masking patches lowers the confidence as Grad-CAM says. Writes metrics.json, table.md, and for each
size of the square examples-SIZEpx.png; mass-grad_cam.png and mass-guided_grad_cam.png show the heat over the epochs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcam
from experiments import _report, _study
from experiments.train_cifar10 import MEAN, STD
from jaxcam import _files, data, metrics, plot, train

FROG = data.CIFAR10_LABELS.index("frog")
NORMALIZE = train.Normalization(MEAN, STD)
# The original's training loss after five epochs; its test accuracy was about 75 %.
ORIGINAL = {"standard": {"loss": 0.554}, "biased": {"loss": 0.564}}
METHODS = {
    "Grad-CAM": jaxcam.grad_cam,
    "Guided Grad-CAM": lambda *args: jaxcam.heatmap(jaxcam.guided_grad_cam(*args), percentile=100),
}
WHERE = {"mass": metrics.energy_pointing_game, "hottest spot": metrics.pointing_game}


COMMAND = "python -m experiments.bias --data-dir DIR --seeds 0 1 2 --sizes 2 4 --width 8"


def main(argv=None):
    on_cpu = jax.default_backend() == "cpu"
    parser = _study.arguments("bias", __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="sides of the square, in pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=16 if on_cpu else 64, help="features of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, help="explained test frogs (default: all 1,000)")
    parser.add_argument("--layer", default="layer4.1.conv2", help="of Grad-CAM and Guided Grad-CAM")
    parser.add_argument("--window", type=int, default=4, help="side of a masked patch, in pixels")
    args = parser.parse_args(argv)
    if args.smoke:
        args.sizes, args.epochs, args.width, args.images, args.layer = [4], 1, 4, 12, "layer4.0.conv2"

    train_data, test_data = _study.cifar10(args)
    module = _study.resnet18(args, width=args.width)
    ten_epochs = 10 * (len(train_data.images) // args.batch_size)
    schedule = optax.exponential_decay(0.01, ten_epochs, 0.1, staircase=True)
    optimizer = train.sgd(schedule, momentum=0.9, nesterov=False, weight_decay=0.0)

    def trained(seed, size, epoch):
        """The model trained with squares of this size (zero: without), and the record of its last epoch."""
        state, record = _study.train_until(
            epoch,
            module,
            data.with_square(train_data, FROG, size) if size else train_data,
            test_data,
            optimizer=optimizer,
            normalize=NORMALIZE,
            batch_size=args.batch_size,
            augment=False,
            seed=seed,
            checkpoint_dir=args.output / "checkpoints" / f"seed-{seed}-square-{size}",
        )
        return jaxcam.tap(module, state.variables, args.layer), record

    def one_epoch(seed, size, epoch):
        model, record = trained(seed, size, epoch)
        name = f"seed {seed}, {f'square of {size} px' if size else 'standard'}, epoch {epoch}"
        squares = {}
        for tested in [size] if size else args.sizes:
            explained = heat(args, model, test_data, tested, last=epoch == args.epochs, description=name)
            squares[str(tested)] = decisions(model, test_data, tested) | explained
        return {"training": record, "squares": squares}

    names = ("sizes", "epochs", "width", "batch_size", "images", "layer", "window")
    settings = {name: getattr(args, name) for name in names}
    runs = {}
    for seed in args.seeds:
        for size in (0, *args.sizes):
            for epoch in range(1, args.epochs + 1):
                name, compute = f"seed-{seed}-square-{size}-epoch-{epoch}", partial(one_epoch, seed, size, epoch)
                runs[seed, size, epoch] = _study.part(args, name, compute, **settings)

    results = {
        size: [over_seeds(args, runs, size, epoch) for epoch in range(1, args.epochs + 1)] for size in args.sizes
    }
    shares = {size: area(size, test_data) for size in args.sizes}
    _study.write_metrics(args, {"squares": results, "shares": shares, "original": ORIGINAL})
    _files.write(args.output / "table.md", tables(args, results, shares))
    for method in METHODS:
        file = f"mass-{method.lower().replace(' ', '_').replace('-', '_')}.png"
        plot.save(mass_per_epoch(method, results, shares), args.output / file)
    for size in args.sizes:
        path = args.output / f"examples-{size}px.png"
        if not path.exists():
            standard, biased = (trained(args.seeds[0], each, args.epochs)[0] for each in (0, size))
            plot.save(examples(args, standard, biased, test_data, size), path)
    _report.publish_results(args, "bias")
    print(f"{len(args.seeds) * (1 + len(args.sizes))} models; written to {args.output}")


def answer(found) -> str:
    size, epochs = list(found["squares"].items())[-1]
    mass, guided = (epochs[-1]["biased"][f"{each}, mass (square)"]["mean"] for each in ("Grad-CAM", "Guided Grad-CAM"))
    return (
        f"Grad-CAM hides it, with {100 * mass:.0f} % of its heat on the square of {size} px; Guided Grad-CAM, with "
        f"{100 * guided:.0f} %, shows it."
    )


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
    return {name: _study.mean_and_interval(each) for name, each in values.items()}


def heat(args, model, test_data, size, *, last, description):
    """Where the heat for "frog" lies on test frogs with the square, and on the same frogs without it."""
    frogs = test_data.images[test_data.labels == FROG][: args.images]
    pictures = {"square": with_square(frogs, size), "no square": frogs}
    mask = np.zeros(frogs.shape[1:3], bool)
    mask[:size, :size] = True

    def explain(images):
        masks = jnp.broadcast_to(mask, images.shape[:3])
        maps = {name: heatmaps(name, model, images) for name in METHODS}
        values = {f"{name}, {where}": WHERE[where](maps[name], masks) for name in METHODS for where in WHERE}
        if last:
            options = {"window": args.window, "chunk_size": 256}
            values["Grad-CAM, correlation with masking"] = metrics.occlusion_correlation(
                model, NORMALIZE(images), maps["Grad-CAM"], FROG, **options
            )
        return values

    summaries = {}
    for name, images in pictures.items():
        values = _study.batched(explain, images, size=batch(args), description=f"{description}, {name}")
        summaries |= {f"{each} ({name})": _study.mean_and_interval(values[each]) for each in values}
    return summaries


def heatmaps(method, model, images):
    return METHODS[method](model, NORMALIZE(images), FROG)


def with_square(images, size):
    return data.with_square(data.Split(images, np.full(len(images), FROG)), size=size).images


def batch(args):
    """Images in one batch of explanations: one size everywhere, so that each method is compiled once."""
    return 12 if args.smoke else 64


def area(size, test_data):
    """The square's share of the image; and of the mass of a map whose only heat is in the corner cell, the most that
    a map of 4x4 cells (for 32 pixels) can put on it."""
    shape = test_data.images.shape[1:3]
    mask = np.zeros((1, *shape), bool)
    mask[:, :size, :size] = True
    cells = jnp.zeros((1, shape[0] // 8, shape[1] // 8)).at[:, 0, 0].set(1)
    corner = jax.image.resize(cells, mask.shape, "linear")
    return {"area": float(mask.mean()), "most": float(metrics.energy_pointing_game(corner, mask)[0])}


def over_seeds(args, runs, size, epoch):
    """What all seeds give for one size of the square, for the standard and the biased model."""
    results = {}
    for name, trained_with in {"standard": 0, "biased": size}.items():
        parts = [runs[seed, trained_with, epoch] for seed in args.seeds]
        own = [part["squares"][str(size)] for part in parts]
        results[name] = {measure: _study.across_runs([each[measure] for each in own]) for measure in own[0]}
        results[name]["loss"] = [part["training"]["loss"] for part in parts]
    return results


def tables(args, results, shares):
    """A table for each size of the square, after the last epoch; and the mass on the square, epoch by epoch."""
    text = [
        f"Seeds {args.seeds}, {args.epochs} epochs at width {args.width}, heat at `{args.layer}`. Means with half "
        "their 95 % interval over images and, in parentheses, over seeds where there are several; heat is that for "
        '"frog", on test frogs with the square and, in the same place, on the same frogs without it.\n'
    ]
    for size, epochs in results.items():
        last, share = epochs[-1], shares[size]
        text.append(
            f"## A square of {size} px\n\nIt covers {share['area']:.2%} of the image; a map of 4x4 cells "
            f"with heat in the corner cell alone has {share['most']:.1%} of its mass there.\n"
        )
        losses = [f"{np.mean(last[model]['loss']):.3f}" for model in ORIGINAL]
        original = " and ".join(f"{each['loss']}" for each in ORIGINAL.values())
        rows = [[f"training loss (original, 4 px: {original})", *losses]]
        measures = [measure for measure in last["biased"] if measure != "loss"]
        rows += [[measure, *(cell(last[model][measure]) for model in ORIGINAL)] for measure in measures]
        text.append(_study.markdown(["measure", *ORIGINAL], rows))
    columns = [(size, model, method) for size in results for model in ORIGINAL for method in METHODS]
    header = ["epoch", *(f"{method}, {model}, {size} px" for size, model, method in columns)]
    rows = [
        [epoch + 1, *(cell(results[size][epoch][model][f"{method}, mass (square)"]) for size, model, method in columns)]
        for epoch in range(args.epochs)
    ]
    text.append("## Share of the mass on the square, epoch by epoch\n\n" + _study.markdown(header, rows))
    return "\n".join(text)


def cell(summary):
    runs = summary["runs_interval"]
    return f"{summary['mean']:.3f} ± {summary['interval']:.3f}" + ("" if runs is None else f" (± {runs:.3f})")


def mass_per_epoch(method, results, shares):
    """The mass on the square over its area: one means that the map does not care about the square."""
    means, intervals = {}, {}
    for model in reversed(ORIGINAL):
        for size, epochs in results.items():
            own = [each[model][f"{method}, mass (square)"] for each in epochs]
            area = shares[size]["area"]
            means[f"{model}, {size} px"] = [each["mean"] / area for each in own]
            intervals[f"{model}, {size} px"] = [(each["runs_interval"] or each["interval"]) / area for each in own]
    return plot.curves(
        means,
        intervals=intervals,
        xlabel="epoch",
        ylabel="share of the mass on the square / its share of the area",
        title=f"{method}: heat on the square",
    )


def examples(args, standard, biased, test_data, size):
    """Test frogs with the square, and the heat of both models."""
    images = with_square(test_data.images[test_data.labels == FROG][:6], size)
    columns = {
        "Grad-CAM, standard": ("Grad-CAM", standard),
        "Grad-CAM, biased": ("Grad-CAM", biased),
        "Guided Grad-CAM, biased": ("Guided Grad-CAM", biased),
    }
    maps = {}
    for title, (method, model) in columns.items():
        explain = partial(heatmaps, method, model)
        maps[title] = _study.batched(explain, images, size=batch(args), description=f"examples, {title}")
    rows = [[image, *((image, heat[row]) for heat in maps.values())] for row, image in enumerate(images)]
    return plot.gallery(rows, columns=["image", *maps], side=1.8, colormap="jet", alpha=0.5)


if __name__ == "__main__":
    main()
