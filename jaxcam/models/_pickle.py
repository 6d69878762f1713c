"""PyTorch's files (`.pth`, `.bin`), read without PyTorch and without trust.

A pickle is a program. Here it may build dicts, lists, tuples, strings, numbers and tensors: each global that it names
is looked up in a table, and any other is refused by name, so nothing else is ever imported or called. A tensor is a
view of a storage in the file, and its extent is checked in exact integers before NumPy sees it. Before it runs, its
opcodes are followed on a stack of sizes: a pickle of a few bytes can build what takes for ever to hash or to show.

Two formats hold such a pickle: a zip file beside its storages, since PyTorch 1.6, and before it, one file in which the
storages follow. The older one has no checksums: an altered number in a storage does not show.
"""

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxcam._errors import shown

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

# A state dict takes about 40 opcodes and 150 bytes for each tensor, and is not ten deep.
MOST_BYTES, MOST_OPCODES, DEEPEST = 2**26, 2_000_000, 50
LARGEST = 20_000_000  # objects, each counted wherever it stands
MOST_AXES, LONGEST_NUMBER = 64, 128  # NumPy's, and bits: the product of two long numbers takes its time
NEEDLESS = f"which no state dict needs. {RESAVE}"


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
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of escapes in words
            if data[:1] == b"\x80":
                return _read_legacy(data)
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return _Archive(archive, len(data)).load()
    except _Refusal as error:
        raise ValueError(f"{name} is refused: {error}.") from None
    except (Exception, MemoryError) as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is truncated or altered ({shown(error)}). Copy or download it again.") from error


class _Archive:
    """One zip file: its pickle, and its storages as they are asked for."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive = archive
        pickles = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        if len(pickles) != 1:
            raise _Refusal(f"a PyTorch file has one data.pkl, but this zip file has {len(pickles)}")
        self.root = pickles[0].removesuffix("data.pkl")
        if (
            sum(entry.file_size for entry in archive.infolist()) > size
        ):  # they overlap, and would be read again and again
            raise _Refusal(f"the entries of this zip file are larger than itself, {NEEDLESS}")
        self.storages = {}

    def load(self):
        if f"{self.root}byteorder" in self.archive.namelist() and self._entry("byteorder") != b"little":
            raise _Refusal("it was written on a big-endian machine")
        return _unpickle(io.BytesIO(self._entry("data.pkl")), self.storage)

    def _entry(self, name: str) -> bytes:
        entry = self.archive.getinfo(self.root + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a few bytes could become gigabytes
            raise _Refusal(f"its entry {shown(name)} is compressed, which PyTorch's files are not. {RESAVE}")
        if name == "data.pkl" and entry.file_size > MOST_BYTES:
            raise _Refusal(f"its pickle has {entry.file_size:,} bytes, {NEEDLESS}")
        return self.archive.read(entry)

    def storage(self, reference) -> np.ndarray:
        kind, key, length = _storage(reference)
        if key not in self.storages:
            values = np.frombuffer(self._entry(f"data/{key}"), STORAGES[kind])
            if len(values) != length:
                raise _Refusal(f"its storage {shown(key)} has {len(values)} elements instead of {length}")
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
            raise _Refusal(f"it asks for its storage {shown(key)} in two ways")

    _unpickle(file, note, rebuild=lambda *_: None)
    keys = _unpickle(file)
    if sorted(keys) != sorted(asked):
        raise _Refusal(f"it asks for {len(asked)} storages, and {len(keys)} others follow")
    for key in keys:
        kind, length = asked[key]
        (found,) = struct.unpack("<q", file.read(8))
        if found != length or found < 0:
            raise _Refusal(f"its storage {shown(key)} has {found} elements instead of {length}")
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
        raise _Refusal(f"it asks for {shown(tag)!r} of kind {shown(kind)!r}, which is not a tensor's storage")
    if view is not None:
        raise _Refusal(f"its storage {shown(key)} is a part of another. {RESAVE}")
    return kind, key, length


def _no_storage(reference):
    raise _Refusal("it asks for a storage where none can be")


def _unpickle(file: io.BytesIO, storage: Callable = _no_storage, rebuild: Callable | None = None) -> Any:
    """The object of the pickle that begins where the file stands."""
    begin = file.tell()
    _measure(file)
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


class _Extent:
    """Of an object that a pickle builds: how deep it is, of how many objects, and whether another holds it."""

    __slots__ = "depth", "size", "held"

    def __init__(self, parts: Sequence["_Extent"] = ()):
        self.depth = self.size = 1
        self.held = False
        self.take(parts)

    def take(self, parts: Sequence["_Extent"]) -> None:
        for part in parts:
            part.held = True
            self.depth = max(self.depth, 1 + part.depth)
            self.size += part.size


PUTS, GETS = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # change what lies below their arguments


def _measure(file: io.BytesIO) -> None:
    """Follows the pickle that begins where the file stands to its end, on a stack of extents: nothing is built.

    Raises:
      _Refusal: it is longer, deeper or larger than a state dict's, or an object in it holds itself.
    """
    begin, built = file.tell(), 0
    stack, marks, memory = [], [], {}
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MOST_OPCODES or (position or 0) - begin > MOST_BYTES:
            raise _Refusal(f"its pickle has more than {MOST_OPCODES:,} opcodes or {MOST_BYTES:,} bytes, {NEEDLESS}")
        if name in PUTS:
            number = len(memory) if argument is None else argument
            if number > file.tell() - begin:  # the table of what it remembers is made that long
                raise _Refusal(f"it remembers an object as number {shown(number)}, and does not have so many")
            memory[number] = stack[-1]
        elif name in GETS:
            stack.append(memory[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks[-1:] == [len(stack)]:  # it takes a mark, too
            marks.pop()
        else:
            parts = _taken(stack, marks, opcode)
            if opcode.stack_after:
                stack.append(_built(name, parts))
                built += sum(part.size for part in parts)
                if stack[-1].depth > DEEPEST or built > LARGEST:
                    raise _Refusal(f"it holds objects {DEEPEST} deep or {LARGEST:,} of them, {NEEDLESS}")


def _taken(stack: list[_Extent], marks: list[int], opcode) -> list[_Extent]:
    """What an opcode takes from the stack: as many as it always takes, or what lies above the last mark and it."""
    wants = opcode.stack_before
    if pickletools.markobject in wants:
        start = marks.pop() - wants.index(pickletools.markobject)
    else:
        start = len(stack) - len(wants)
    if start < (marks[-1] if marks else 0):
        raise ValueError("an opcode takes more than there is")
    parts = stack[start:]
    del stack[start:]
    return parts


def _built(name: str, parts: list[_Extent]) -> _Extent:
    """The extent of what an opcode leaves, made of its parts."""
    if name not in FILLING:
        return _Extent(parts)
    filled, *others = parts
    if filled.held or filled in others:
        raise _Refusal(f"it fills an object that another holds already, maybe itself, {NEEDLESS}")
    filled.take(others)
    return filled


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
                f"it asks for {shown(f'{module}.{name}')}, which is not part of a state dict, and was not run. "
                f"If you trust the file: {RESAVE[0].lower()}{RESAVE[1:]}"
            )
        return self.known[module, name]


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """The view of `storage` at `offset`; sizes and strides count elements, as in torch."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MOST_AXES or not all(map(_is_extent, numbers)):
        told = ", ".join(map(shown, (offset, size, stride)))
        raise _Refusal(f"it has a tensor whose offset, size and stride are {told}, which cannot be")
    count = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    # More elements than the storage has: a tensor of stride 0, which could fill the memory.
    if count > len(storage) or (count and last >= len(storage)):
        raise _Refusal(
            f"it has a tensor of offset {offset}, size {shown(size)} and stride {shown(stride)}, which exceeds its "
            f"storage of {len(storage)} elements"
        )
    itemsize = storage.itemsize
    # An empty tensor may carry any offset and stride; torch does not look at them either.
    offset, stride = (offset, stride) if count else (0, (0,) * len(size))
    return np.ndarray(size, storage.dtype, storage, offset * itemsize, [step * itemsize for step in stride])


def _is_extent(number: Any) -> bool:
    return isinstance(number, int) and number >= 0 and number.bit_length() <= LONGEST_NUMBER
