"""Attacks that are called outside of `jax.jit`: compiled once per attack, options, shapes and structure of the model.

There are two ways to know that a compiled program is still the right one:

- **By structure.** A model that is a pytree (`robust_jax.model`, `robust_jax.bind`, a module of NNX or Equinox) is a
  function of its leaves and its structure, as for `jax.jit`. If the perturbation, losses and optimizers are those of
  libraries, nothing has to be traced again.
- **By tracing.** Any other function may read what has changed since the last call: a rebound global, another closure, a
  module that was trained on. The attack is traced at every call, which sees all of it, and a program is used again if
  it was compiled from an equal trace. Arrays that were closed over are its arguments, so that new weights, or a lambda
  that is written again at each call, do not compile again.

The numbers are those of `jax.jit` of the attack. Inside of other transformations attacks stay as they are.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core

from robust_jax.spaces import registry

KEPT = 128
"""The number of compiled attacks that are kept in memory, of each of the two kinds; the least recently used goes."""
_LIBRARIES = ("robust_jax", "jax", "optax", "flax", "numpy", "builtins")
_SIMPLE = (bool, int, float, complex, str, bytes, np.generic)
# Raised where Python code needs values: such an attack runs without being compiled.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError,
)  # fmt: skip


def run(
    function: Callable[..., Any], model: Any, images: Any, labels: Any, threat: Any, options: dict[str, Any]
) -> Any:
    """``function(model, images, labels, threat, **options)``, compiled unless it is part of another computation."""
    arrays, tree, static = split((model, options))
    data = (arrays, images, labels, threat)
    if getattr(jax.config, "jax_disable_jit", False) or _inside(data):
        return function(model, images, labels, threat, **options)
    try:
        if _by_structure(model, threat, options):
            return _program(function, tree, static)(*data)
        found = _traced(_unflattened(function, tree, static), data)
        if found is not None:
            return found()
    except _NEEDS_VALUES:
        pass
    return function(model, images, labels, threat, **options)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)


def split(tree: Any) -> tuple[list[Any], Any, tuple[Any, ...]]:
    """The arrays of a pytree, its structure, and its other leaves with their types; None stands for the other kind."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    return arrays, structure, tuple(None if _is_array(leaf) else (type(leaf), leaf) for leaf in leaves)


def join(arrays: list[Any], structure: Any, static: tuple[Any, ...]) -> Any:
    """The pytree that `split` took apart."""
    leaves = [array if fixed is None else fixed[1] for array, fixed in zip(arrays, static, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _inside(data: Any) -> bool:
    """Whether JAX traces: an argument, or whatever is computed here."""
    probe = jax.lax.full((), 0)
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(data), probe))


def _by_structure(model: Any, threat: Any, options: dict[str, Any]) -> bool:
    """Whether structure and leaves say all that the result depends on."""
    return is_structured(model) and is_fixed(threat, options)


def is_fixed(threat: Any, *options: Any) -> bool:
    """Whether perturbation and options are those of libraries, so that no code of one's own may have changed."""
    spaces = registry.built_in().values()
    if not all(part in spaces for part in threat.perturbation.parts or (threat.perturbation,)):
        return False
    return all(_is_array(leaf) or _of_library(leaf) for leaf in jax.tree.leaves(options))


def is_structured(model: Any) -> bool:
    """Whether a model is a pytree, a function of its leaves and structure; `Partial` of any function is not."""
    if isinstance(model, jax.tree_util.Partial) or jax.tree_util.all_leaves([model]):
        return False
    if not getattr(model, "is_structured", True):  # says so itself: `robust_jax.model` of a function without weights
        return False
    return all(_is_array(leaf) or isinstance(leaf, Hashable) for leaf in jax.tree.leaves(model))


def as_argument(model: Any) -> Any:
    """A model as an argument of functions under `jax.jit`: itself if it is structured, and holds nothing but arrays.

    What else a structured one holds, such as the activations of an Equinox module, becomes part of the cache's key.
    Any other model is that as a whole, and equal to nothing from before: it may read what has changed since.
    """
    if not is_structured(model):
        return jax.tree_util.Partial(lambda images: model(images))
    arrays, structure, static = split(model)
    return model if not any(static) else jax.tree_util.Partial(_Joined(structure, static), arrays)


@dataclass(frozen=True)
class _Joined:
    """A model without its arrays; equal ones share compiled programs."""

    structure: Any
    static: tuple[Any, ...]

    def __call__(self, arrays: list[Any], images: Any) -> Any:
        return join(arrays, self.structure, self.static)(images)


def _of_library(value: Any) -> bool:
    """Whether an option is a plain value, or a function that does not change."""
    if isinstance(value, functools.partial):
        return all(map(_of_library, (value.func, *value.args, *value.keywords.values())))
    if callable(value):
        named = getattr(value, "__module__", None) or ""
        return named.split(".")[0] in _LIBRARIES and "<locals>" not in getattr(value, "__qualname__", "<locals>")
    return isinstance(value, _SIMPLE)


def _unflattened(function: Callable[..., Any], tree: Any, static: tuple[Any, ...]) -> Callable[..., Any]:
    """The function of arrays, the rest being fixed."""

    def attack(arrays: list[Any], images: Any, labels: Any, threat: Any) -> Any:
        model, options = join(arrays, tree, static)
        return function(model, images, labels, threat, **options)

    return attack


@functools.lru_cache(maxsize=KEPT)
def _program(function: Callable[..., Any], tree: Any, static: tuple[Any, ...]) -> Callable[..., Any]:
    return jax.jit(_unflattened(function, tree, static))


@functools.lru_cache(maxsize=KEPT)
def _model_alone(tree: Any, static: tuple[Any, ...]) -> Any:
    def call(arrays: list[Any], images: Any) -> Any:
        return join(arrays, tree, static)(images)

    return jax.jit(call)


def shape_only(model: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``function``, which calls a model, or if the model has a structure one of the same shapes that is traced once.

    For checks, which ask for nothing but the shape of the logits.
    """
    if not is_structured(model):
        return function
    arrays, tree, static = split(model)
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return function
    return functools.partial(_model_alone(tree, static), arrays)


_lock = threading.Lock()
_programs: OrderedDict[Any, Callable[..., Any]] = OrderedDict()


def _traced(attack: Callable[..., Any], data: Any) -> Callable[[], Any] | None:
    """The program of an equal trace, with its arguments; None if the trace is part of another computation."""
    closed, shapes = jax.make_jaxpr(attack, return_shape=True)(*data)
    consts, out_tree = list(closed.consts), jax.tree.structure(shapes)
    if any(isinstance(const, jax.core.Tracer) for const in consts):
        return None
    key = (out_tree, fingerprint(closed.jaxpr))
    with _lock:
        program = _programs.get(key)
        if program is None:
            program = _programs[key] = jax.jit(functools.partial(_evaluated, closed.jaxpr))
        _programs.move_to_end(key)
        while len(_programs) > KEPT:
            _programs.popitem(last=False)
    flat = jax.tree.leaves(data)
    consts = [np.asarray(const) if type(const).__name__ == "TypedNdArray" else const for const in consts]
    return lambda: jax.tree.unflatten(out_tree, program(consts, flat))


def _evaluated(jaxpr: Any, consts: list[Any], flat: list[Any]) -> list[Any]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*flat)


class _Same:
    """Equal to itself only: a part of a trace without a value to compare. It is kept, so that its id stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def fingerprint(jaxpr: Any) -> tuple[Any, ...]:
    """What a trace computes, as a hashable value: equal ones compile to the same program.

    Left out are the values of the trace's own constants, and how custom derivatives are differentiated: derivatives
    that are needed are written out in the trace already.
    """
    numbers: dict[Any, int] = {}  # each different jaxpr once, in order
    seen: dict[int, int] = {}

    def of_jaxpr(inner: Any) -> int:
        if id(inner) not in seen:
            names: dict[Any, int] = {}

            def of_variable(variable: Any) -> Any:
                if isinstance(variable, core.Literal):
                    return ("literal", variable.aval, of_value(np.asarray(variable.val)))
                return names.setdefault(variable, len(names))

            inputs = tuple((of_variable(v), v.aval) for v in (*inner.constvars, *inner.invars))
            equations = tuple(
                (
                    eqn.primitive, tuple(map(of_variable, eqn.invars)),
                    tuple((of_variable(v), v.aval) for v in eqn.outvars),
                    getattr(eqn.ctx, "compute_type", None), getattr(eqn.ctx, "threefry_partitionable", None),
                    of_parameters(eqn),
                )
                for eqn in inner.eqns
            )  # fmt: skip
            whole = (inputs, equations, tuple(map(of_variable, inner.outvars)))
            seen[id(inner)] = numbers.setdefault(whole, len(numbers))
        return seen[id(inner)]

    def of_parameters(eqn: Any) -> tuple[Any, ...]:
        custom = eqn.primitive.name.startswith(("custom_jvp", "custom_vjp"))
        return tuple((k, of_value(v)) for k, v in sorted(eqn.params.items()) if not custom or _is_jaxpr(v))

    def of_value(value: Any) -> Any:
        if _is_jaxpr(value):
            consts = tuple(map(of_value, getattr(value, "consts", ())))
            return ("jaxpr", of_jaxpr(getattr(value, "jaxpr", value)), consts)
        if isinstance(value, tuple | list):
            return (type(value), *map(of_value, value))
        if isinstance(value, dict):
            return ("dict", *((k, of_value(v)) for k, v in value.items()))
        if isinstance(value, np.ndarray) or type(value).__name__ == "TypedNdArray":
            array = np.asarray(value)
            return (array.shape, array.dtype, array.tobytes())
        if isinstance(value, float):
            return value.hex()
        plain = not isinstance(value, jax.Array) and isinstance(value, Hashable)
        return (type(value), value) if plain else _Same(value)

    return of_jaxpr(jaxpr), *numbers


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") and hasattr(value, "invars") or hasattr(value, "jaxpr") and hasattr(value, "consts")


def clear() -> None:
    """Forgets all compiled attacks, and frees their memory."""
    _program.cache_clear()
    _model_alone.cache_clear()
    with _lock:
        _programs.clear()
