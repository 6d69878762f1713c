"""What several commands share: an argument, tables, a bar, and how they complain."""

import sys

PROGRAMS = 512 * 2**20  # bytes of compiled programs that are kept; the oldest go first


def add_model(parser, name: str, **options) -> None:
    described = "a registered name, a weight file, or hf:owner/repo"
    parser.add_argument(name, metavar="NAME_OR_PATH" if name.startswith("-") else "MODEL", help=described, **options)
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        help="that a weight file must have, such as resnet50; else as its tensors show",
    )


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"jaxcam: {' '.join(message.split())}", file=sys.stderr)


def table(*columns: str):
    """An empty table of these columns."""
    from rich.table import Column, Table

    headers = [Column(name, overflow="fold") for name in columns]
    return Table(*headers, box=None, header_style="bold", pad_edge=False)


def show(*renderables) -> None:
    from rich.console import Console

    Console(highlight=False).print(*renderables)


def progress():
    """A line on stderr that is written anew, and goes when it is done; without a terminal there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn()
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    return Progress(*columns, TextColumn("{task.description}"), **options)


def keep_programs() -> None:
    """Compiled programs stay on disk, so that a second run begins at once; `$JAX_COMPILATION_CACHE_DIR` goes first."""
    import platform

    import jax

    from jaxcam.models._download import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        # A folder for each machine: a program for one processor may not run on another that shares the home folder.
        folder = cache_folder() / "programs" / platform.node()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", PROGRAMS)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
