"""A model's program as one flat list of equations, run forwards as it is and walked backwards by rules of one's own.

`trace` records what the model computes as a jaxpr and opens every call in it (jit, remat, custom derivatives, scan), so
that a ReLU is the same equation however the model spells it. `run` gives the value of every variable, and `backward`
carries something (a gradient, multipliers, relevance) from the output to the image, equation by equation: a method is
the rule that says what an equation passes to its operands. Weights stay what they are to the caller: inside `jit`,
arguments of the compiled program.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

try:  # what only JAX itself has: without it, a profile shows the engine's lines instead of the user's
    from jax._src.source_info_util import current, current_name_stack, user_context, user_frame
except ImportError:
    user_context = None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What equations do to values, by the name of their primitive. In MOVES they change place, and none changes.
MOVES = _names("""
    broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice expand_dims gather optimization_barrier
    pad pvary reshape rev sharding_constraint slice split squeeze stack tile transpose unstack
""")
REPEATS = _names("broadcast_in_dim pvary")  # over further places, or over the devices of `shard_map`
PRODUCTS = _names("conv_general_dilated dot_general")
SUMS = _names("add add_any sub cumsum reduce_sum reduce_window_sum")
MAXIMA = _names("reduce_max reduce_window_max")
ELEMENTWISE = _names("""
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow
    reduce_precision rem round rsqrt sign sin sinh sqrt square sub tan tanh xor
""")

TRANSPARENT = _names("jit pjit closed_call core_call checkpoint remat remat2")
WITH_DERIVATIVES = _names("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr")


class Program(NamedTuple):
    """Equations in the order in which they run; `depends` are the variables that the image influences."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    equations: list
    depends: set
    made_by: dict  # variable -> the equation that computes it
    used_by: dict  # variable -> the equations that take it
    structure: Any  # of the output

    def run(self, images) -> Callable:
        """The value of every variable when the input is `images`, as a function of the variable."""
        values = evaluate(self.jaxpr, self.consts, [images], bind)
        return lambda variable: variable.val if isinstance(variable, Literal) else values[variable]

    def output(self, values: Callable):
        """The output, of the structure that the traced function returned."""
        return jax.tree.unflatten(self.structure, map(values, self.jaxpr.outvars))

    def active(self, equation) -> list[int]:
        """Which operands of an equation depend on the image."""
        return [i for i, v in enumerate(equation.invars) if not isinstance(v, Literal) and v in self.depends]


def trace(function: Callable, images, keep: Callable = lambda equation: False) -> Program:
    """The program of `function(images)`.

    Args:
      keep: which of the equations that have a derivative of their own, or a loop, to leave closed.
    """
    # A new function each time: JAX remembers traces by function, and what `function` closes over may have changed.
    closed, shape = jax.make_jaxpr(lambda images: function(images), return_shape=True)(images)
    return _flatten(closed, keep, jax.tree.structure(shape))


def backward(program: Program, seeds: Sequence, rule: Callable):
    """Carries `seeds`, one or `None` for each leaf of the output, back to the image; `None` where nothing arrives.

    `rule(equation, received)` gets what the equation's outputs received (`None` for nothing), and gives pairs of a
    variable and its share. Shares of one variable add up; those of variables that the image does not influence are
    dropped.
    """
    received = {}

    def give(variable, share):
        if share is not None and not isinstance(variable, Literal) and variable in program.depends:
            received[variable] = _sum(received[variable], share) if variable in received else share

    for variable, seed in zip(program.jaxpr.outvars, seeds, strict=True):
        give(variable, seed)
    for equation in reversed(program.equations):
        arrived = [received.pop(variable, None) for variable in equation.outvars]
        if any(each is not None for each in arrived):
            with placed(equation, named=False):
                shares = list(rule(equation, arrived))
            for variable, share in shares:
                give(variable, share)
    return received.get(program.jaxpr.invars[0])


def _sum(a, b):
    """Of shares, in the wider of their types: some rules compute in float32, whatever the model does."""
    dtype = max(a.dtype, b.dtype, key=lambda each: each.itemsize)
    return a.astype(dtype) + b.astype(dtype)


def seeds(scalar: Callable, output) -> list:
    """The gradient of `scalar(output)` for each leaf of the output, and `None` for a leaf that it does not read.

    What leads to such a leaf alone needs no rule.
    """
    leaves, structure = jax.tree.flatten(output)
    program = trace(scalar, output)
    read = [i for i, v in enumerate(program.jaxpr.invars) if v in program.used_by and is_inexact(v.aval)]

    def of_those(chosen):
        return scalar(structure.unflatten(replaced(leaves, read, chosen)))

    return replaced([None] * len(leaves), read, jax.grad(of_those)([leaves[i] for i in read]))


def bind(equation, operands) -> list:
    """Runs one equation."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair in older versions of JAX
    with placed(equation):
        outputs = equation.primitive.bind(*functions, *operands, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


@contextmanager
def placed(equation, *, named: bool = True):
    """In here everything has the line, the context (such as a device) and the name that the equation has.

    So an error, a profile and the compiler see the user's program where this package runs it again.
    """
    context = getattr(getattr(equation, "ctx", None), "manager", nullcontext())
    info, place = equation.source_info, nullcontext()
    if user_context is not None:
        names = current_name_stack() + info.name_stack if named else current_name_stack()
        # What a function of JAX does inside, such as `jnp.sort`, is at the line that calls it.
        lines = info.traceback if user_frame(info.traceback) is not None else current().traceback
        place = user_context(lines, name_stack=names)
    with place, context:
        yield


def pull(equation, operands: Sequence, arrived: Sequence, active: Sequence[int]) -> list:
    """The vector-Jacobian product of one equation at `operands`, with respect to the `active` ones of them."""

    def run(*chosen):
        outputs = bind(equation, replaced(operands, active, chosen))
        return [output if is_inexact(output) else None for output in outputs]

    outputs, pullback = jax.vjp(run, *(operands[i] for i in active))

    def seed(output, each):
        return jnp.zeros_like(output) if each is None else each.astype(output.dtype)

    seeds = [None if output is None else seed(output, each) for output, each in zip(outputs, arrived, strict=True)]
    return list(pullback(seeds))


def gradient(program: Program, values: Callable, equation, arrived):
    """The rule of ordinary differentiation."""
    active = [i for i in program.active(equation) if is_inexact(equation.invars[i].aval)]
    if not active or not any(is_inexact(variable.aval) for variable in equation.outvars):
        return []
    operands = [values(variable) for variable in equation.invars]
    shares = pull(equation, operands, arrived, active)
    return zip([equation.invars[i] for i in active], shares, strict=True)


def is_inexact(value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def gather_to(share, variable):
    """The sum over the axes along which an elementwise operation has repeated its operand."""
    shape = (1,) * (share.ndim - variable.aval.ndim) + variable.aval.shape
    axes = [axis for axis, (new, old) in enumerate(zip(share.shape, shape, strict=True)) if new != old]
    return jnp.sum(share, axes, keepdims=True).reshape(variable.aval.shape)


def no_rule(method, equation):
    return ValueError(
        f"{method} has no rule for the operation {equation.primitive.name!r} on values that depend on the image, so "
        "its attributions would not add up. Use a method for any model, such as `integrated_gradients`."
    )


def is_rounding(equation):
    types = [variable.aval.dtype for variable in (*equation.invars, *equation.outvars)]
    return equation.primitive.name == "convert_element_type" and all(
        jnp.issubdtype(each, jnp.inexact) for each in types
    )


def unmoved(program: Program, variable):
    """What a variable is before it was repeated, reshaped or rounded."""
    equation = None if isinstance(variable, Literal) else program.made_by.get(variable)
    if equation is None or not (equation.primitive.name in REPEATS | {"reshape", "squeeze"} or is_rounding(equation)):
        return variable
    return unmoved(program, equation.invars[0])


def softmax_parts(program: Program, division) -> tuple:
    """The equations of `exp(x)` and of its sum, where an equation is their quotient; otherwise `None`, twice.

    In half precision JAX sums in float32, so the values are rounded on the way.
    """
    exponential, total = (unmoved(program, each) for each in division.invars)
    power, sums = (None if isinstance(each, Literal) else program.made_by.get(each) for each in (exponential, total))
    if power is None or sums is None or (power.primitive.name, sums.primitive.name) != ("exp", "reduce_sum"):
        return None, None
    return (power, sums) if unmoved(program, sums.invars[0]) is exponential else (None, None)


def relu_operand(program: Program, equation):
    """The variable whose ReLU the equation computes, or `None`.

    `max(x, 0)`, which is also `jax.nn.relu` and `jnp.clip(x, 0)`; `where(x > 0, x, 0)`; `x * (x > 0)`. A maximum whose
    root is taken at once is none: it keeps rounding from making a variance negative, in every normalisation layer.
    """
    name, operands = equation.primitive.name, equation.invars
    if name == "max" and not _is_variance(program, equation.outvars[0]):
        found = [x for x, other in (operands, operands[::-1]) if _is_zero(program, other)]
    elif name == "select_n" and len(operands) == 3:
        which, when_false, when_true = operands
        found = [when_true] * (_is_zero(program, when_false) and _is_sign_test(program, which, when_true, 1))
        found += [when_false] * (_is_zero(program, when_true) and _is_sign_test(program, which, when_false, -1))
    elif name == "mul":
        found = [x for x, mask in (operands, operands[::-1]) if _is_sign_test(program, mask, x, 1)]
    else:
        found = []
    shape = equation.outvars[0].aval.shape
    found = [x for x in found if not isinstance(x, Literal) and x in program.depends and x.aval.shape == shape]
    return found[0] if found else None


def contains_relu(equation) -> bool:
    """Whether a ReLU is inside an equation that has programs among its parameters."""
    for body in bodies(equation):
        program = _flatten(body, lambda inner: not contains_relu(inner))
        if any(relu_operand(program, each) is not None or contains_relu(each) for each in program.equations):
            return True
    return False


def _is_variance(program, variable) -> bool:
    """Whether a variable goes nowhere but into a root, maybe moved and with a constant added."""
    users = program.used_by.get(variable, ())
    return bool(users) and all(
        equation is not None
        and (
            equation.primitive.name in ("rsqrt", "sqrt")
            or (
                equation.primitive.name in MOVES | {"add", "convert_element_type"}
                and len(program.active(equation)) == 1
                and _is_variance(program, equation.outvars[0])
            )
        )
        for equation in users
    )


def _is_zero(program, variable) -> bool:
    """Whether a variable is known to be zero: a literal, possibly converted and repeated."""
    if isinstance(variable, Literal):
        return np.size(variable.val) == 1 and not np.any(variable.val)
    equation = program.made_by.get(variable)
    if equation is None or equation.primitive.name not in REPEATS | {"convert_element_type"}:
        return False
    return _is_zero(program, equation.invars[0])


def _is_sign_test(program, variable, x, sign: int) -> bool:
    """Whether a variable is `x > 0` (sign 1) or `x < 0` (sign -1), maybe as a number; ties do not matter."""
    equation = None if isinstance(variable, Literal) else program.made_by.get(variable)
    if equation is None:
        return False
    name, operands = equation.primitive.name, equation.invars
    if name == "convert_element_type":
        return _is_sign_test(program, operands[0], x, sign)
    if name not in ("gt", "ge", "lt", "le"):
        return False
    left, right = operands if (name[0] == "g") == (sign > 0) else operands[::-1]
    return left is x and _is_zero(program, right)


def _flatten(closed: ClosedJaxpr, keep, structure=None) -> Program:
    """Opens the calls by running the program again while JAX records it."""

    def run(*inputs):
        values = evaluate(closed.jaxpr, closed.consts, inputs, partial(_expand, keep))
        return [each.val if isinstance(each, Literal) else values[each] for each in closed.jaxpr.outvars]

    flat = jax.make_jaxpr(run)(*closed.in_avals)  # as they are: under `shard_map` they say over what they vary
    equations, needed = [], {v for v in flat.jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(flat.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.append(equation)
            needed.update(v for v in equation.invars if not isinstance(v, Literal))
    equations.reverse()
    depends, made_by, used_by = set(flat.jaxpr.invars), {}, defaultdict(list)
    for variable in flat.jaxpr.outvars:
        if not isinstance(variable, Literal):
            used_by[variable].append(None)  # by the caller
    for equation in equations:
        made_by.update((variable, equation) for variable in equation.outvars)
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                used_by[variable].append(equation)
        if any(not isinstance(v, Literal) and v in depends for v in equation.invars):
            depends.update(equation.outvars)
    return Program(flat.jaxpr.replace(eqns=equations), flat.consts, equations, depends, made_by, used_by, structure)


def evaluate(jaxpr: Jaxpr, consts, inputs, apply: Callable) -> dict:
    """The value of every variable; `apply(equation, operands)` runs an equation."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    for equation in jaxpr.eqns:
        operands = [each.val if isinstance(each, Literal) else values[each] for each in equation.invars]
        values.update(zip(equation.outvars, apply(equation, operands), strict=True))
    return values


def _expand(keep, equation, operands) -> list:
    name = equation.primitive.name
    if None in (equation.params.get("branches_platforms") or ()):  # the model's own form is the one for any platform
        with placed(equation):
            own = bodies(equation)[equation.params["branches_platforms"].index(None)]
            return _inside(keep, own, operands[1:])
    if name not in TRANSPARENT and (name not in WITH_DERIVATIVES | {"scan", "stop_gradient"} or keep(equation)):
        return bind(equation, operands)
    with placed(equation):
        if name == "stop_gradient":
            return operands
        return _unrolled(keep, equation, operands) if name == "scan" else _inside(keep, bodies(equation)[0], operands)


def _inside(keep, body: ClosedJaxpr, operands) -> list:
    values = evaluate(body.jaxpr, body.consts, operands, partial(_expand, keep))
    return [each.val if isinstance(each, Literal) else values[each] for each in body.jaxpr.outvars]


def _unrolled(keep, equation, operands) -> list:
    """A scan, one step after the other."""
    params = equation.params
    body, length = params["jaxpr"], params["length"]
    # What is stacked has an axis more outside than inside; JAX's own counts are called differently from 0.12 on.
    num_carry = _of_one_rank(equation.outvars, body.jaxpr.outvars)
    num_consts = _of_one_rank(equation.invars, body.jaxpr.invars) - num_carry
    consts, carry, stacked = np.split(np.arange(len(operands)), [num_consts, num_consts + num_carry])
    consts, carry, stacked = ([operands[i] for i in each] for each in (consts, carry, stacked))
    steps = defaultdict(list)
    for step in range(length)[:: -1 if params["reverse"] else 1]:
        outputs = _inside(keep, body, [*consts, *carry, *(each[step] for each in stacked)])
        carry = outputs[:num_carry]
        for i, output in enumerate(outputs[num_carry:]):
            steps[i].insert(0 if params["reverse"] else len(steps[i]), output)
    return [*carry, *(jnp.stack(each) for each in steps.values())]


def _of_one_rank(outside, inside) -> int:
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def bodies(equation) -> list[ClosedJaxpr]:
    """The programs among an equation's parameters."""
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each)
            elif isinstance(each, Jaxpr):
                found.append(ClosedJaxpr(each, ()))
    return found


def replaced(operands, indices, replacements) -> list:
    replaced = list(operands)
    for index, replacement in zip(indices, replacements, strict=True):
        replaced[index] = replacement
    return replaced
