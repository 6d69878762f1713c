"""Where images come from: every source has a length, gives rows by their numbers, and knows whether it has changed.

A folder, a glob, a list, a tree with a folder for each class, a TFDS split, Parquet or ArrayRecord: what they give is
the content of image files, or where these are, so that decoding is the same for all. A source can be pickled, and opens
its files anew in each process.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LISTS = (".txt", ".tsv", ".lst")
RECORDS = (".arrayrecord", ".array_record")


class Item(NamedTuple):
    """A row of a source: what it is called, its file or the content of one, and its class if that is known.

    The content of a row that cannot be read is the error.
    """

    name: str
    content: Path | bytes | Exception
    label: int | None


@dataclass(frozen=True)
class Files:
    """Image files; their names in the table are relative to `root`."""

    root: Path
    names: Sequence[str]
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] | None = None
    kind: str = "files"

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Iterable[int]) -> list[Item]:
        label = self.labels.__getitem__ if self.labels is not None else lambda row: None
        return [Item(self.names[row], self.root / self.names[row], label(row)) for row in rows]

    def digest(self) -> str:
        """Of names, sizes and classes: another file, or one of another size, is another source."""
        lines = []
        for row, name in enumerate(self.names):
            try:
                size = (self.root / name).stat().st_size
            except OSError:
                size = -1
            lines.append(f"{name}\0{size}\0{'' if self.labels is None else self.labels[row]}\n")
        return _sha256("".join(lines).encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Tfds:
    """A split of a data set that TFDS has prepared."""

    name: str
    split: str
    data_dir: str | None
    kind: str = "tfds"

    @functools.cached_property
    def _opened(self):
        from jaxcam import data

        return data.encoded(self.name, self.split, data_dir=self.data_dir)

    def __getstate__(self):  # an open file stays in its process
        return {key: value for key, value in vars(self).items() if key != "_opened"}

    def __len__(self) -> int:
        return len(self._opened[0])

    @property
    def classes(self) -> tuple[str, ...] | None:
        features: Any = self._opened[1].features
        names = getattr(features["label"], "names", None) if "label" in features else None
        return tuple(names) if names else None

    def read(self, rows: Iterable[int]) -> list[Item]:
        rows = list(rows)
        found = self._opened[0].__getitems__(rows)
        return [
            Item(_key(self.split, row, each), each["image"], each.get("label"))
            for row, each in zip(rows, found, strict=True)
        ]

    def digest(self) -> str:
        info = self._opened[1]
        files = info.splits[self.split.partition("[")[0]].filepaths
        sizes = [(Path(each).name, Path(each).stat().st_size) for each in files]
        return _sha256(repr((self.name, str(info.version), self.split, len(self), sizes)).encode())


def _key(split: str, row: int, example: dict) -> str:
    key = example.get("id", example.get("file_name", f"{split}_{row:08d}"))
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


@dataclass(frozen=True)
class Parquet:
    """Parquet files with a column of images, as bytes or as `{bytes, path}` (the layout of the Hugging Face hub)."""

    paths: tuple[Path, ...]
    kind: str = "parquet"
    classes: tuple[str, ...] | None = None

    @functools.cached_property
    def _groups(self) -> tuple[list[tuple[Path, int]], np.ndarray]:
        """All row groups, and the row at which each begins."""
        import pyarrow.parquet as pq

        groups, counts = [], [0]
        for path in self.paths:
            described = pq.read_metadata(path)
            groups += [(path, group) for group in range(described.num_row_groups)]
            counts += [described.row_group(group).num_rows for group in range(described.num_row_groups)]
        return groups, np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._groups[1][-1])

    def read(self, rows: Iterable[int]) -> list[Item]:
        groups, starts = self._groups
        items = []
        for row in rows:
            place = int(np.searchsorted(starts, row, side="right")) - 1
            path, group = groups[place]
            table, row_of_group = _row_group(path, group), row - int(starts[place])
            image = table["image"][row_of_group].as_py()
            inner = image if isinstance(image, dict) else {"bytes": image}
            label = table["label"][row_of_group].as_py() if "label" in table.column_names else None
            items.append(Item(inner.get("path") or f"{path.name}:{row}", inner["bytes"] or b"", label))
        return items

    def digest(self) -> str:
        return _sha256(repr([(path.name, path.stat().st_size) for path in self.paths] + [len(self)]).encode())


@functools.lru_cache(maxsize=4)
def _row_group(path: Path, group: int):
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = [name for name in ("image", "label") if name in file.schema_arrow.names]
    if "image" not in columns:
        raise ValueError(f"'{path}' has no column 'image'; it has {', '.join(file.schema_arrow.names)}.")
    return file.read_row_group(group, columns=columns)


@dataclass(frozen=True)
class ArrayRecord:
    """ArrayRecord files whose records are image files."""

    paths: tuple[Path, ...]
    kind: str = "arrayrecord"
    classes: tuple[str, ...] | None = None

    @functools.cached_property
    def _opened(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(list(map(str, self.paths)))

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "_opened"}

    def __len__(self) -> int:
        return len(self._opened)

    def read(self, rows: Iterable[int]) -> list[Item]:
        rows = list(rows)
        records = self._opened.__getitems__(rows)
        return [Item(f"{self.paths[0].name}:{row}", each, None) for row, each in zip(rows, records, strict=True)]

    digest = Parquet.digest


# --- From what the user names to a source -----------------------------------------------------------------------------


def source_of(spec: Any, data_dir: str | None = None):
    """The source that `spec` names; a source of one's own stays as it is.

    Raises:
      ValueError: it names nothing that is known, or holds no image.
      OSError: there is no such file or folder.
    """
    if hasattr(spec, "read") and hasattr(spec, "__len__"):
        return spec
    text = os.fspath(spec)
    source = _tfds(text, data_dir) if text.startswith("tfds:") else _on_disk(Path(text).expanduser())
    if not len(source):
        raise ValueError(f"'{text}' holds no images (files named {', '.join(IMAGES[:4])}, ...).")
    return source


def _tfds(text: str, data_dir: str | None) -> Tfds:
    name, slash, split = text.removeprefix("tfds:").rpartition("/")
    if not slash:
        raise ValueError(f"{text!r} names no split; write tfds:NAME/SPLIT, such as tfds:cifar10/test.")
    return Tfds(name, split, data_dir)


def _on_disk(path: Path):
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        paths = (path,)
    elif any(each in path.name or each in str(path.parent) for each in "*?["):
        root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if set("*?[") & set(part))])
        paths = tuple(sorted(root.glob(str(path.relative_to(root)))))
    else:
        raise FileNotFoundError(f"There is no file or folder '{path}'.")
    if len(paths) == 1 and path.suffix.lower() in LISTS:
        return _listed(path)
    return _of_kind(paths) or Files(*_named(paths))


def _of_kind(paths: tuple[Path, ...]):
    """Files of records, where all are of one kind."""
    if paths and all(each.suffix == ".parquet" for each in paths):
        return Parquet(paths)
    if paths and all(any(suffix in each.name for suffix in RECORDS) for each in paths):
        return ArrayRecord(paths)
    return None


def _named(paths: tuple[Path, ...]) -> tuple[Path, list[str]]:
    """A folder that holds all of these files, and their names in it."""
    if not paths:
        return Path(), []
    root = Path(os.path.commonpath([each.parent for each in paths]))
    return root, [str(each.relative_to(root)) for each in paths if each.is_file()]


def _folder(root: Path):
    """All images below a folder; where none lies in it directly, its folders are taken for classes."""
    found = sorted(_walk(root))
    names = [name for name in found if name.lower().endswith(IMAGES)]
    if not names:
        paths = tuple(root / name for name in found)
        return _of_kind(tuple(p for p in paths if p.suffix == ".parquet")) or _of_kind(paths) or Files(root, [])
    if any(os.sep not in name for name in names):
        return Files(root, names)
    classes = sorted({name.split(os.sep)[0] for name in names})
    places = {name: place for place, name in enumerate(classes)}
    labels = np.array([places[name.split(os.sep)[0]] for name in names], np.int32)
    return Files(root, names, labels.tolist(), tuple(classes), "tree")


def _walk(root: Path) -> Iterator[str]:
    """The files below a folder, also through links to folders, each folder once."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below[:] = sorted(each for each in below if not each.startswith("."))
        inside = os.path.relpath(folder, root)
        yield from (each if inside == "." else os.path.join(inside, each) for each in files if each[0] != ".")


def _listed(path: Path) -> Files:
    """A file with a path in each line, relative to it, and behind a tab a class where all have one."""
    lines = [line for line in path.read_text("utf-8", "surrogateescape").splitlines() if line.strip()]
    names, labels = zip(*(line.partition("\t")[::2] for line in lines), strict=True) if lines else ((), ())
    if not any(labels):
        return Files(path.parent, list(names), kind="list")
    if not all(labels):
        raise ValueError(f"'{path}' gives a class behind a tab in some lines and not in line {labels.index('') + 1}.")
    if all(each.strip().isdecimal() for each in labels):
        return Files(path.parent, list(names), list(map(int, labels)), None, "list")
    classes = sorted(set(map(str.strip, labels)))
    return Files(path.parent, list(names), [classes.index(each.strip()) for each in labels], tuple(classes), "list")


def _sha256(content) -> str:
    return hashlib.sha256(content).hexdigest()
