"""`jaxcam explain-dataset` and `jaxcam report`: a whole data set, and the page that shows what came of it."""

import sys
import warnings
from pathlib import Path

from jaxcam.cli._common import add_model, complain, keep_programs

USUAL = ("grad_cam",)
DAY = 86_400


def add(commands) -> None:
    """Adds the commands and their arguments to the parser."""
    parser = commands.add_parser("explain-dataset", help="explain every image of a data set; goes on where it stopped")
    parser.set_defaults(run=run)
    source = "a folder, a glob, a list of files, tfds:NAME/SPLIT, or Parquet or ArrayRecord files of images"
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_model(parser, "--model", default="efficientnet_lite0")
    parser.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    parser.add_argument("--methods", nargs="+", default=USUAL, metavar="NAME", help="(default: grad_cam)")
    parser.add_argument("--metrics", nargs="+", default=(), metavar="NAME", help="(default: none)")
    parser.add_argument("--targets", default="predicted", metavar="CLASS", help="predicted, label, or a class")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at once (default: as suits the devices)")
    parser.add_argument("--dtype", default="float16", metavar="TYPE", help="of the heatmaps: float16, float32 or uint8")
    parser.add_argument("--data-dir", metavar="DIR", help="of TFDS")
    parser.add_argument("--max-errors", type=int, metavar="N", help="unreadable images before it stops (default: any)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (default: threads)")
    parser.add_argument("--allow", nargs="+", default=(), metavar="WHAT", help="versions or device may have changed")
    parser.add_argument("--part", metavar="I/N", help="the ranges of the I-th of N processes, counted from 0")
    several = "with other processes, as SLURM, a TPU pod or JAX_COORDINATOR_ADDRESS say (jax.distributed)"
    parser.add_argument("--distributed", action="store_true", help=several)
    parser.add_argument("--engine", default="local", metavar="NAME", help="local, or ray")
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: one on this machine)")
    parser.add_argument("--ray-workers", type=int, metavar="N", help="(default: one for each GPU, or two)")
    page = commands.add_parser("report", help="write a page about the results of explain-dataset")
    page.set_defaults(run=report)
    page.add_argument("folder", type=Path, metavar="DIR", help="the output of explain-dataset")
    page.add_argument("--output", type=Path, metavar="FILE", help="the page (default: DIR.html)")
    page.add_argument("--source", metavar="SOURCE", help="where the images are now, if they have moved")
    page.add_argument("--data-dir", metavar="DIR", help="of TFDS, if it has moved")


def run(args) -> None:
    """Explains the data set, with a bar: images, rate, time left, the share of time spent waiting, and memory."""
    part = _part(args.part)
    keep_programs()
    import jax

    if args.distributed:
        jax.distributed.initialize(shutdown_timeout_seconds=DAY)  # the first waits for those that take longer
    from jaxcam import dataset, load

    options = {"address": args.address, "num_workers": args.ray_workers} if args.engine == "ray" else None
    named = ("methods", "metrics", "targets", "batch_size", "dtype", "layer", "data_dir", "max_errors", "workers")
    asked = {name: getattr(args, name) for name in (*named, "allow", "engine")}
    model = load(args.model, architecture=args.architecture)
    with warnings.catch_warnings(record=True) as caught, _Bar() as bar:
        warnings.simplefilter("always", UserWarning)
        results = dataset.explain(
            model, args.source, args.output, part=part, engine_options=options, progress=bar.show, **asked
        )
    for said in dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning):
        complain(said)
    print(_summary(bar.last, results))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    here, _, of = text.partition("/")
    if not (here.isdecimal() and of.isdecimal() and int(here) < int(of)):
        raise ValueError(f"--part is {text!r}; it must be I/N with I below N, such as 0/4 to 3/4.")
    return int(here), int(of)


class _Bar:
    """A line that shows how far it is."""

    last = None

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn()
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task("", total=None, facts="loading")
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def show(self, state) -> None:
        self.last = state
        facts = f"{_rate(state):.1f} images/s, waiting {state.waiting:.0%}, {_memory() / 2**20:.0f} MiB"
        facts += f", {state.errors} unreadable" if state.errors else ""
        self.bar.update(self.task, total=state.total, completed=state.done, facts=facts if state.new else "compiling")


def _rate(state) -> float:
    return state.new / max(state.seconds, 1e-9)


def _memory() -> float:
    """The most that this process has used, in bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _summary(state, results) -> str:
    unreadable = f", {state.errors} unreadable" if state.errors else ""
    new = f"{state.new} of {state.total} images explained now ({_rate(state):.1f} images/s){unreadable}"
    if state.new == 0:
        new = f"nothing was missing: {state.total} images{unreadable}"
    rest = "" if results.is_complete else "; other processes have ranges left"
    return f"{new}; devices waited {state.waiting:.1%} of the time; results in {results.folder}{rest}"


def report(args) -> None:
    """Writes the page."""
    from jaxcam import dataset

    print(f"report in {dataset.report(args.folder, args.output, source=args.source, data_dir=args.data_dir)}")
