"""PyTorch's files (`.pth`, `.bin`), read without PyTorch and without trust.

A pickle is a program. Here it may build dicts, lists, tuples, strings, numbers and tensors: each global that it names
is looked up in a table, and any other is refused by name, so nothing else is ever imported or called. A tensor is a
view of a storage in the file, and its extent is checked in exact integers before NumPy sees it. Before it runs, its
opcodes are read: one that speaks of more than there is would take memory in vain.

Two formats hold such a pickle: a zip file beside its storages, since PyTorch 1.6, and before it, one file in which the
storages follow. The older one has no checksums: an altered number in a storage does not show.
"""

import io
import math
import pickle
import pickletools
import reprlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
RESAVE = "Where torch is installed, save the state dict alone: torch.save(model.state_dict(), 'new.pth')"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with which the older format begins


class _Refusal(ValueError):
    """What the file asks for is not granted; as opposed to a file that cannot be read."""


class _Dict(dict):
    """Stands for OrderedDict, and drops the attributes that torch hangs on a state dict (`_metadata`)."""

    def __setstate__(self, state):
        pass


def read(data: bytes, name: str) -> Any:
    """The object that `torch.save` wrote into `data`, with NumPy arrays for tensors.

    Args:
      data: the file's bytes.
      name: how errors call the file.

    Raises:
      ValueError: the file is truncated or altered, names a global that is not one of a tensor's, or has a tensor that
        exceeds its storage.

    Example:
      >>> read(pickle.dumps([1, 2]), "list.pth")
      Traceback (most recent call last):
      ValueError: list.pth is refused: it is a pickle, but none that torch.save wrote. Where torch is installed, save \
the state dict alone: torch.save(model.state_dict(), 'new.pth').
    """
    try:
        if data[:1] == b"\x80":
            return _read_legacy(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Archive(archive).load()
    except _Refusal as error:
        raise ValueError(f"{name} is refused: {error}.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is truncated or altered ({error}). Copy or download it again.") from error


class _Archive:
    """One zip file: its pickle, and its storages as they are asked for."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        pickles = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        if len(pickles) != 1:
            raise _Refusal(f"a PyTorch file has one data.pkl, but this zip file has {len(pickles)}")
        self.root = pickles[0].removesuffix("data.pkl")
        self.storages = {}

    def load(self):
        if f"{self.root}byteorder" in self.archive.namelist() and self._entry("byteorder") != b"little":
            raise _Refusal("it was written on a big-endian machine")
        return _unpickle(io.BytesIO(self._entry("data.pkl")), self.storage)

    def _entry(self, name: str) -> bytes:
        entry = self.archive.getinfo(self.root + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a few bytes could become gigabytes
            raise _Refusal(f"its entry {name} is compressed, which PyTorch's files are not. {RESAVE}")
        return self.archive.read(entry)

    def storage(self, reference) -> np.ndarray:
        kind, key, length = _storage(reference)
        if key not in self.storages:
            values = np.frombuffer(self._entry(f"data/{key}"), STORAGES[kind])
            if len(values) != length:
                raise _Refusal(f"its storage {key} has {len(values)} elements instead of {length}")
            self.storages[key] = values
        return self.storages[key]


def _read_legacy(data: bytes) -> Any:
    """The older format: three small pickles, the pickle, that of the storages' keys, and each storage after its length.

    The pickle asks for storages that follow it, so it is run twice: once to learn their kinds, once with their values.
    """
    file = io.BytesIO(data)
    if _unpickle(file) != MAGIC or _unpickle(file) != PROTOCOL:
        raise _Refusal(f"it is a pickle, but none that torch.save wrote. {RESAVE}")
    if not _unpickle(file)["little_endian"]:
        raise _Refusal("it was written on a big-endian machine")
    begin, asked, storages = file.tell(), {}, {}

    def note(reference):
        kind, key, length = _storage(reference)
        if asked.setdefault(key, (kind, length)) != (kind, length):
            raise _Refusal(f"it asks for its storage {key} in two ways")

    _unpickle(file, note, rebuild=lambda *_: None)
    keys = _unpickle(file)
    if sorted(keys) != sorted(asked):
        raise _Refusal(f"it asks for {len(asked)} storages, and {len(keys)} others follow")
    for key in keys:
        kind, length = asked[key]
        (found,) = struct.unpack("<q", file.read(8))
        if found != length or found < 0:
            raise _Refusal(f"its storage {key} has {found} elements instead of {length}")
        storages[key] = np.frombuffer(data, STORAGES[kind], length, file.tell())
        file.seek(storages[key].nbytes, io.SEEK_CUR)
    if left := len(data) - file.tell():
        raise _Refusal(f"{left} bytes follow its last storage")
    file.seek(begin)
    return _unpickle(file, lambda reference: storages[_storage(reference)[1]])


def _storage(reference) -> tuple[str, str, int]:
    """The kind, the key and the length of the storage that a pickle asks for."""
    tag, kind, key, _, length, view = reference if len(reference) == 6 else (*reference, None)
    if not all(isinstance(each, str) for each in (tag, kind, key)):  # hashing what is nested could take forever
        raise _Refusal("it asks for a storage by other things than words")
    if tag != "storage" or kind not in STORAGES:
        raise _Refusal(f"it asks for {tag!r} of kind {kind!r}, which is not a tensor's storage")
    if view is not None:
        raise _Refusal(f"its storage {key} is a part of another. {RESAVE}")
    return kind, key, length


def _no_storage(reference):
    raise _Refusal("it asks for a storage where none can be")


def _unpickle(file: io.BytesIO, storage: Callable = _no_storage, rebuild: Callable | None = None) -> Any:
    """The object of the pickle that begins where the file stands."""
    begin = file.tell()
    numbers = [argument for opcode, argument, _ in pickletools.genops(file) if opcode.name.endswith("PUT")]
    if max(numbers, default=0) > file.tell() - begin:  # the table of what it remembers is made that long
        raise _Refusal(f"it remembers an object as number {max(numbers)}, and does not have so many")
    file.seek(begin)
    # Made anew for each pickle, which can set attributes on what it is given.
    known = {
        ("collections", "OrderedDict"): _Dict,
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor"): rebuild or (lambda *arguments: _tensor(*arguments)),
        ("torch._utils", "_rebuild_tensor_v2"): rebuild or (lambda *arguments: _tensor(*arguments[:4])),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        **{("torch", kind): kind for kind in STORAGES},
    }
    return _Unpickler(file, known, storage).load()


class _Unpickler(pickle.Unpickler):
    """Finds globals only in the table `known`."""

    def __init__(self, file, known: dict, storage):
        super().__init__(file)
        self.known, self.storage = known, storage

    def persistent_load(self, reference):
        return self.storage(reference)

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise _Refusal(
                f"it asks for {module}.{name}, which is not part of a state dict, and was not run. "
                f"If you trust the file: {RESAVE[0].lower()}{RESAVE[1:]}"
            )
        return self.known[module, name]


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """The view of `storage` at `offset`; sizes and strides count elements, as in torch."""
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(size) != len(stride):
        told = ", ".join(map(reprlib.repr, (offset, size, stride)))  # of anything, maybe nested without end
        raise _Refusal(f"it has a tensor whose offset, size and stride are {told}, which cannot be")
    count = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    # More elements than the storage has: a tensor of stride 0, which could fill the memory.
    if count > len(storage) or (count and last >= len(storage)):
        raise _Refusal(
            f"it has a tensor of offset {offset}, size {size} and stride {stride}, which exceeds its storage of "
            f"{len(storage)} elements"
        )
    itemsize = storage.itemsize
    # An empty tensor may carry any offset and stride; torch does not look at them either.
    offset, stride = (offset, stride) if count else (0, (0,) * len(size))
    return np.ndarray(size, storage.dtype, storage, offset * itemsize, [step * itemsize for step in stride])
