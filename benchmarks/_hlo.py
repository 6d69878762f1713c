"""Sums over a compiled program's text: every instruction as often as it runs."""

import re
from collections.abc import Callable
from math import prod

CALLED = re.compile(r"\b(condition|body|to_apply|calls)=%?([\w.-]+)")
ELEMENTS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}  # bytes; else 4


def total(text: str, of_line: Callable[[str, dict], int], fused: bool = False) -> int:
    """The sum of `of_line(line, shapes)` over all instructions, those of a loop's body as often as it turns.

    `shapes` are those of all values by name. Of the branches of a choice the most counts; what is inside of a fusion
    counts if it is `fused`.
    """
    computations, entry, inside = {}, None, None
    for line in text.splitlines():
        if begins := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            inside = computations.setdefault(begins[2], [])
            entry = begins[2] if begins[1] else entry
        elif line.startswith("  ") and inside is not None:
            inside.append(line)
    shapes = dict(re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = (\w+\[[\d,]*\])", text, re.MULTILINE))

    def turns(condition: str) -> int:
        limits = re.findall(r"s32\[\].* constant\((\d+)\)", "\n".join(computations[condition]))
        return max(map(int, limits), default=1)  # of a loop that ends by what it finds, one turn

    def of(name: str) -> int:
        return sum(map(whole, computations[name]))

    def whole(line: str) -> int:
        called = dict(CALLED.findall(line))
        if " while(" in line:
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            return (int(known[1]) if known else turns(called["condition"])) * of(called["body"])
        if " conditional(" in line:
            branches = re.search(r"branch_computations=\{(.*?)\}", line)
            names = branches[1].split(", ") if branches else re.findall(r"(?:true|false)_computation=(%?[\w.-]+)", line)
            return max(of(each.lstrip("%")) for each in names)
        if " call(" in line:
            return of(called["to_apply"])
        return of_line(line, shapes) + (of(called["calls"]) if fused and " fusion(" in line else 0)

    return of(entry)


def cycles(line: str, shapes: dict) -> int:
    """A TPU compiler's own estimate."""
    found = re.search(r'"estimated_cycles":"(\d+)"', line)
    return int(found[1]) if found else 0


def operations(line: str, shapes: dict) -> int:
    """Of a convolution or a matrix product, two for each product, without those by the zeros between pixels."""
    found = re.search(r"= (\w+\[[\d,]*\])\S* (convolution|dot)\((.*?)\)", line)
    if not found:
        return 0
    shape, kind, operands = found.groups()
    names = re.findall(r"%?([\w.-]+)(?:,|$)", re.sub(r"\w+\[[\d,]*\](\{[^}]*\})? ", "", operands))
    left, right = (sides(shapes[name]) for name in names[:2])
    if kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1]
        return 2 * prod(sides(shape)) * prod(left[int(axis)] for axis in contracted.split(",") if axis)
    kernel = re.search(r"dim_labels=\w+_(\w+)->", line)[1]
    spread = re.search(r"lhs_dilate=([\dx]+)", line)
    zeros = prod(map(int, spread[1].split("x"))) if spread else 1
    return 2 * prod(sides(shape)) * prod(right) // right[kernel.index("o")] // zeros


COLLECTIVE = re.compile(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def collectives(line: str, shapes: dict) -> int:
    return bool(COLLECTIVE.search(line))


def moved(line: str, shapes: dict) -> int:
    """Bytes that a collective gives to a device."""
    found = COLLECTIVE.search(line)
    values = re.findall(r"(\w+)\[([\d,]*)\]", found[1]) if found else ()
    return sum(ELEMENTS.get(kind, 4) * prod(map(int, filter(None, each.split(",")))) for kind, each in values)


def sides(shape: str) -> list[int]:
    return [int(each) for each in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if each]
