"""The user's program with other convolutions in it, for the same results, so that any model gains, and its gradients.

`fast` traces a function, looks into its loops, branches and calls, and puts another form (`forms.py`) where a platform
has one that its compiler is faster at; all other equations stay the objects that they were. Where the platform is not
known, all are there, and whoever compiles it chooses.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxcam._engine.forms import FORMS
from jaxcam._engine.program import (
    TRANSPARENT,
    WITH_DERIVATIVES,
    bind,
    evaluate,
    placed,
    replaced,
)

# What is opened, to look for convolutions; the programs of other equations (`shard_map`) mean nothing outside of them.
OPENED = TRANSPARENT | WITH_DERIVATIVES | {"cond", "scan", "while"}
LOOPS = ("scan", "while")


def fast(
    function: Callable, platform: str | None = None, *, is_loop: bool = False, is_repeated: bool = False
) -> Callable:
    """`function`, its convolutions and what sums them rewritten; for use inside `jit`, unless it is a loop alone.

    Of its arguments, those that are no arrays stay as they are. A `platform` is where it will run; `None` leaves that
    to whoever compiles it. What is repeated takes the forms of what is inside of a loop. What JAX runs again an
    operation at a time, to find a NaN, stays as it is too.
    """
    if platform not in (None, *FORMS):
        return function

    def run(*inputs, **named):
        leaves, structure = jax.tree.flatten((inputs, named))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

        def of_arrays(arrays):
            inputs, named = jax.tree.unflatten(structure, replaced(leaves, places, arrays))
            return function(*inputs, **named)

        of_arrays.__name__ = getattr(function, "__name__", "run")
        arrays = [leaves[i] for i in places]
        if _looks_for_nans(arrays):
            return function(*inputs, **named)
        # As one equation that holds the program, which is then bound once, not an equation at a time. A loop is one
        # itself, and what it closes over is then an operand, which keeps its device; in a `jit` it were a constant.
        program = of_arrays if is_loop else jax.jit(of_arrays)
        closed, shape = jax.make_jaxpr(program, return_shape=True)(arrays)
        program = _rewritten(closed.jaxpr, is_repeated, platform)
        values = evaluate(program, closed.consts, arrays, bind)
        outputs = [each.val if isinstance(each, Literal) else values[each] for each in program.outvars]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _looks_for_nans(arrays) -> bool:
    """Whether these are the values themselves, each operation on which JAX checks for NaN or infinity."""
    checks = jax.config.jax_debug_nans or jax.config.jax_debug_infs  # pyright: ignore[reportAttributeAccessIssue]
    return checks and not any(isinstance(each, Tracer) for each in arrays)


def _rewritten(value, repeated: bool, platform: str | None):
    """A program with other forms in it, or the same object where there is nothing to write; of other values, those."""
    if isinstance(value, Jaxpr):
        equations = [each for old in value.eqns for each in _instead(old, repeated, platform)]
        return value.replace(eqns=equations) if _differ(equations, value.eqns) else value
    if isinstance(value, ClosedJaxpr):
        program = _rewritten(value.jaxpr, repeated, platform)
        return value if program is value.jaxpr else value.replace(jaxpr=program)
    if type(value) is tuple:
        values = tuple(_rewritten(each, repeated, platform) for each in value)
        return values if _differ(values, value) else value
    return value


def _differ(new, old) -> bool:
    return len(new) != len(old) or any(a is not b for a, b in zip(new, old, strict=True))


def _instead(equation, repeated: bool, platform: str | None) -> list:
    """The equations in the place of one; what is already another form for each platform stays."""
    if forms := _forms(equation, platform):
        return _spliced(equation, repeated, forms, platform)
    if equation.primitive.name not in OPENED or equation.params.get("branches_platforms"):
        return [equation]
    repeated = repeated or equation.primitive.name in LOOPS
    params = {name: _rewritten(value, repeated, platform) for name, value in equation.params.items()}
    return [equation.replace(params=params) if _differ(params.values(), equation.params.values()) else equation]


def _spliced(equation, repeated: bool, forms: dict[str, Callable], platform: str | None) -> list:
    """The equations of a convolution's or a sum's form, between its operands and its results."""

    def run(form, *operands):
        with placed(equation):
            return form(repeated, *operands, **equation.params)

    def on_any(*operands):
        return jax.lax.platform_dependent(*operands, default=as_it_is, **on)

    def as_it_is(*operands):
        return bind(equation, operands)[0]

    on = {place: partial(run, form) for place, form in forms.items()}
    form = on_any if platform is None else on[platform]
    with placed(equation, named=False):
        closed = jax.make_jaxpr(form)(*(variable.aval for variable in equation.invars))
    program = closed.jaxpr
    given, made = zip(program.invars, equation.invars, strict=True), zip(program.outvars, equation.outvars, strict=True)
    constants = zip(program.constvars, closed.consts, strict=True)
    here = {**dict(given), **dict(made), **{variable: Literal(value, variable.aval) for variable, value in constants}}

    def ours(variables):
        return [each if isinstance(each, Literal) else here.get(each, each) for each in variables]

    return [each.replace(invars=ours(each.invars), outvars=ours(each.outvars)) for each in program.eqns]


def _forms(equation, platform: str | None) -> dict[str, Callable]:
    """The other forms of an equation, on this platform or on each that has one."""
    name = equation.primitive.name
    found = {place: forms[name] for place, forms in FORMS.items() if name in forms and platform in (None, place)}
    return {place: form for place, (form, is_better) in found.items() if is_better(equation)}
