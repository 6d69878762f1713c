"""One program for several platforms: each has its own, whole, and the choice between them is made once.

JAX itself, asked for several platforms at once, writes a choice around every equation that one of them has a kernel of
its own for, and the rewritten convolutions would come on top. Here each platform's program is what it is when it is
exported alone, rewritten for it; programs that came out alike, as those of GPUs and TPUs mostly do, are kept once.
Constants lie outside, and are there once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.interpreters.mlir import ir
from jaxlib.mlir.dialects import func, stablehlo
from jaxlib.mlir.passmanager import PassManager

from jaxcam._engine.compiled import whole

choice = Primitive("choice_of_platform")
choice.multiple_results = True


def portable(function: Callable, platforms: Sequence[str], given: Sequence, constants: Sequence = ()) -> Any:
    """`function(*constants, *given)` as a `jax.export.Exported` that takes what is `given`, trees of shapes."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(constants))
    traced = [jax.jit(whole(function, each), keep_unused=True) for each in platforms]
    both = zip(traced, platforms, strict=True)
    programs = [jax.export.export(each, platforms=[platform])(*shapes, *given) for each, platform in both]
    texts = tuple(map(_without_lines, programs))
    results, structure = tuple(programs[0].out_avals), programs[0].out_tree

    def chosen(*given):
        operands = jax.tree.leaves((*constants, *given))
        return jax.tree.unflatten(structure, choice.bind(*operands, programs=texts, results=results))

    chosen.__name__ = function.__name__  # the module's name
    return jax.export.export(jax.jit(chosen, keep_unused=True), platforms=platforms)(*given)


@choice.def_abstract_eval
def _shapes(*operands, programs, results):
    return list(results)


def _lowered(ctx, *operands, programs, results):
    """Of each platform's program, in the order of `platforms`, a call; between those that differ, one `case`."""
    module, symbols = ctx.module_context.module, ctx.module_context.symbol_table
    names, types = {}, []
    for text in dict.fromkeys(programs):
        program = _parsed(text)
        types = ir.SymbolTable(program.operation)["main"].type.results  # pyright: ignore[reportAttributeAccessIssue]
        names[text] = mlir.merge_mlir_modules(module, "on_a_platform", program, dst_symtab=symbols)

    def called(text):
        return func.CallOp(types, ir.FlatSymbolRefAttr.get(names[text]), list(operands)).results

    with ir.Location.unknown():
        if len(names) == 1:
            return called(programs[0])
        chosen = stablehlo.CaseOp(types, index=ctx.dim_var_values[0], num_branches=len(programs))
        for region, text in zip(chosen.regions, programs, strict=True):
            with ir.InsertionPoint(region.blocks.append()):
                stablehlo.return_(called(text))
        return chosen.results


def _without_lines(exported) -> str:
    """A program without the lines of source that it came from, by which those that are alike would differ."""
    with mlir.make_ir_context():
        return str(ir.Module.parse(exported.mlir_module()))


def _parsed(text: str):
    """Without the lines of the text, either, which would be four tenths of it."""
    program = ir.Module.parse(text)
    PassManager.parse("builtin.module(strip-debuginfo)").run(program.operation)
    return program


mlir.register_lowering(choice, _lowered)
