"""`jaxcam compare`: which method to take for a model, judged on pictures of one's own."""

from pathlib import Path

from jaxcam._errors import printable
from jaxcam.cli._common import add_model, complain, count, keep_programs, muffled, pixels_at_most, progress, show, table
from jaxcam.cli.explain import class_index

WORDS = {"high": "↑", "low": "↓", "near zero": "→ 0", "describes": ""}


def add(commands) -> None:
    """Adds the command and its arguments to the parser."""
    parser = commands.add_parser("compare", help="which method to take: methods through metrics, on your own images")
    parser.set_defaults(run=run)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them; better fifty")
    add_model(parser, "--model", default="efficientnet_lite0")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="(default: one of each idea, and a random map)")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="(default: some of faithfulness)")
    parser.add_argument("--target", metavar="INDEX_OR_LABEL", help="class to explain (default: each prediction)")
    parser.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    parser.add_argument("--batch-size", type=count, default=16, metavar="N", help="images at once (default: 16)")
    where = "folder for the results; what is there already is not measured again"
    parser.add_argument("--output", type=Path, default=Path("jaxcam_comparison"), metavar="DIR", help=where)
    pixels = "most pixels of an image that is decoded (default: 89 million)"
    parser.add_argument("--max-pixels", type=count, metavar="N", help=pixels)


def run(args) -> None:
    """Measures, prints the table and the sentence, and writes them with a picture."""
    keep_programs()
    import jaxcam
    from jaxcam import _files
    from jaxcam.cli import _results

    _results.make_writable(args.output)
    paths = [path for given in args.images for path in _files_in(given)]
    with pixels_at_most(args.max_pixels), progress() as bar:
        task = bar.add_task("loading the model", total=None)
        classifier = jaxcam.load(args.model, architecture=args.architecture)
        target = None if args.target is None else class_index(args.target, classifier.labels)
        with muffled():
            images = classifier.preprocess(paths)
        found = jaxcam.compare(
            classifier.tap(args.layer),
            images,
            target,
            methods=args.methods,
            metrics=args.metrics,
            batch_size=args.batch_size,
            output=args.output,
            progress=lambda name: bar.update(task, description=f"measuring {name}", refresh=True),
        )
    _print(found)
    for name, reason in found.errors.items():
        complain(f"{name} is left out: {reason}")
    said = found.recommendation()
    _files.write(args.output / "comparison.md", f"{said}\n\n{found.table()}\n")
    points = {
        name: (passes, *rank) for name, passes, rank in zip(found.methods, found.passes, found.ranks(), strict=True)
    }
    title = f"{len(paths)} image{'s' * (len(paths) > 1)}, {args.model}"
    axes = {"xlabel": "cost, forward passes", "ylabel": "quality, mean rank over the metrics", "log_x": True}
    jaxcam.plot.save(jaxcam.plot.scatter({title: points}, **axes), args.output / "comparison.png")
    print(f"\n{said.replace('`', '')}\nresults in {printable(str(args.output))}")


def _files_in(given: str) -> list[str]:
    """A file, or the images of a folder in the order of their names."""
    from PIL import Image

    if not Path(given).is_dir():
        return [given]
    known = Image.registered_extensions()
    paths = sorted(path for path in Path(given).rglob("*") if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise ValueError(f"'{given}' holds no images.")
    return list(map(str, paths))


def _print(found) -> None:
    """The table, best first: means without their intervals, which are in the file."""
    titles = [f"{name} {WORDS[better]}".rstrip() for name, better in zip(found.metrics, found.better, strict=True)]
    rows = table("method", "mean rank", "passes", *titles)
    ranks, means = found.ranks(), found.means()
    for i in ranks[:, 0].argsort(kind="stable")[::-1]:
        rank = "{:.2f} ({:.2f} to {:.2f})".format(*ranks[i])
        rows.add_row(found.methods[i], rank, f"{found.passes[i]:.1f}", *(f"{each:.3f}" for each in means[i, :, 0]))
    show(rows)
