"""Networks with one face, that of Linen: what the trainer, its checkpoints and evaluations know of a model.

    variables = network.init(key, images)                              # {"params": ..., "batch_stats": ...}
    logits = network.apply(variables, images)                          # as in evaluation
    logits, new = network.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

A Linen module whose ``__call__`` takes ``train`` has it already. `LinenNetwork` gives it to other Linen modules, and
`NNXNetwork` to modules of NNX: pure functions of the variables, so that BatchNorm and Dropout work under any
transformation of JAX. `robust_jax.models.trainable` chooses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

if TYPE_CHECKING:  # imported where it is used: `import robust_jax.models` does without
    from flax import nnx

Variables = Mapping[str, Any]
Path = tuple[str, ...]
COLLECTIONS = ("params", "batch_stats")
"""What training keeps: the weights, and what else the network updates."""

# How networks are told that they are evaluated.
EVALUATED = {"train": False, "training": False, "is_training": False, "deterministic": True, "inference": True,
              "use_running_average": True}  # fmt: skip


def in_mode(module: nn.Module, train: bool) -> nn.Module:
    """A Linen module told by its fields, such as ``train: bool``, that it is trained or evaluated.

    Not by those that ``__call__`` has too: its arguments have precedence.
    """
    told = inspect.signature(type(module).__call__).parameters
    names = [field.name for field in fields(module) if field.name in EVALUATED and field.name not in told]
    own: dict[str, Any] = {name: EVALUATED[name] is not train for name in names}
    return module.clone(**own) if own else module


def mode_settings(function: Callable[..., Any], train: bool) -> dict[str, Any]:
    """The arguments by which a network's ``__call__`` is told that it is trained, or evaluated."""
    parameters = inspect.signature(function).parameters
    return {name: value is not train for name, value in EVALUATED.items() if name in parameters}


def check_variables(what: str, variables: Any) -> None:
    """Raises ValueError for the parameters of a Linen module alone, without the name of their collection."""
    if isinstance(variables, Mapping) and variables and "params" not in variables:
        raise ValueError(
            f"{what}: variables has the collections {sorted(map(str, variables))[:5]} and no 'params': give "
            f"{{'params': params}}, or all that module.init returns."
        )


@dataclass(frozen=True, eq=False)
class Fixed:
    """A module as what does not change of a pytree: compared by its fields, also if these are arrays."""

    module: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fixed) or type(self.module) is not type(other.module):
            return False
        try:
            return bool(self.module == other.module)
        except ValueError:  # arrays have no single truth
            return all(np.array_equal(*pair) for pair in zip(*map(_fields, (self.module, other.module)), strict=True))

    def __hash__(self) -> int:
        try:
            return hash(self.module)
        except TypeError:
            return hash(type(self.module))


def _fields(module: Any) -> list[Any]:
    return [getattr(module, field.name) for field in fields(module) if field.compare]


@dataclass(frozen=True)
class LinenNetwork:
    """A Linen module that is told of training in another way than by ``train``, or that comes with its weights.

    Attributes:
      module: the module.
      held: the variables that training starts from; None to draw them.
    """

    module: nn.Module
    held: Variables | None = field(default=None, compare=False, repr=False)

    def init(self, key: Any, images: Float[Array, "b h w c"]) -> Any:
        """The first variables."""
        settings = mode_settings(type(self.module).__call__, False)
        return in_mode(self.module, False).init(key, images, **settings)

    def apply(
        self, variables: Variables, images: Float[Array, "b h w c"], *, train: bool = False, mutable: Any = False,
        rngs: Any = None,
    ) -> Any:  # fmt: skip
        """Logits, and with ``mutable`` the new variables of these collections too."""
        settings = mode_settings(type(self.module).__call__, train)
        return in_mode(self.module, train).apply(variables, images, mutable=mutable, rngs=rngs, **settings)


@dataclass(frozen=True)
class Made:
    """``make(rngs=rngs, **options)``: a class or function of NNX with its options. Equal ones make equal modules."""

    make: Callable[..., nnx.Module]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, rngs: Any) -> nnx.Module:
        """A new module."""
        return self.make(rngs=rngs, **dict(self.options))


@dataclass(frozen=True, eq=False)
class Given:
    """A module that exists, with its weights."""

    module: nnx.Module

    def __call__(self, rngs: Any) -> nnx.Module:
        """A copy of it."""
        from flax import nnx

        return nnx.clone(self.module)

    def __repr__(self) -> str:
        return f"Given({type(self.module).__name__})"


@dataclass(frozen=True)
class NNXNetwork:
    """An NNX module as pure functions of its variables.

    ``params`` are the module's `nnx.Param`; ``batch_stats`` are all other variables but the states of random streams,
    which are drawn from ``rngs={"dropout": key}`` at each call: the same key gives the same masks, a stream of its own
    for every layer.

    Attributes:
      make: `Made` or `Given`.
    """

    make: Made | Given

    @property
    def held(self) -> Variables | None:
        """The variables that training starts from; None to draw them."""
        return self.init(None, None) if isinstance(self.make, Given) else None

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of the variables, as `jax.ShapeDtypeStruct`."""
        return _structure(self.make).shapes

    def init(self, key: Any, images: Any = None) -> dict[str, Any]:
        """The first variables; the images are not needed. Not for `jax.jit`, in which NNX loses arrays of a module."""
        from flax import nnx

        module = self.make(None if isinstance(self.make, Given) else nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ValueError(f"the model's function returned {module!r}: it must return a flax.nnx.Module.")
        return _variables(module)

    def apply(
        self, variables: Variables, images: Float[Array, "b h w c"], *, train: bool = False, mutable: Any = False,
        rngs: Any = None,
    ) -> Any:  # fmt: skip
        """Logits, and with ``mutable`` the new ``batch_stats`` too."""
        from flax import nnx

        if train and not rngs and jax.tree.leaves(_structure(self.make).random):
            raise ValueError("the model draws random numbers in training, such as dropout: give rngs={'dropout': key}.")
        key = (rngs or {}).get("dropout", jax.random.key(0))
        module = self._merged(variables, train, key)
        settings = mode_settings(type(module).__call__, train)
        if train and "rngs" in inspect.signature(type(module).__call__).parameters:
            settings["rngs"] = nnx.Rngs(key)
        logits = module(images, **settings)  # type: ignore[operator]
        if not mutable:
            return logits
        known = _structure(self.make).parts["batch_stats"].paths
        now = flatten_dict(_named(_split(module)[1][2]))
        return logits, {"batch_stats": unflatten_dict({path: now[path] for path in known})} if known else {}

    def module(self, variables: Variables) -> nnx.Module:
        """An NNX module with these variables, in evaluation mode: what was trained, for use without this package."""
        return self._merged(variables, False, jax.random.key(0))

    def _merged(self, variables: Variables, train: bool, key: Any) -> nnx.Module:
        from flax import nnx

        structure = _structure(self.make)
        parts = [part.state(variables.get(name, {})) for name, part in structure.parts.items()]
        graph = structure.trained if train else structure.evaluated
        return nnx.merge(graph, parts[0], structure.streams(key), parts[1])


Network = nn.Module | LinenNetwork | NNXNetwork
"""What the trainer trains. A Linen module must take ``train``."""


class _Part(NamedTuple):
    """The structure of a part of a module's state, and the path of every leaf."""

    structure: Any
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, state: Any) -> _Part:
        """That of a state."""
        return cls(jax.tree.structure(state), tuple(path for path, _ in _leaves(state)))

    def state(self, named: Mapping[str, Any]) -> Any:
        """The state of nested dicts, as `_named` gives them."""
        flat = flatten_dict(named)
        return jax.tree.unflatten(self.structure, [flat[path] for path in self.paths])


class _Structure(NamedTuple):
    """What an NNX module is besides its variables.

    Attributes:
      trained: its graph in training mode.
      evaluated: its graph in evaluation mode.
      parts: its parameters and its other variables.
      random: the shapes of its random streams.
      shapes: those of its variables.
    """

    trained: Any
    evaluated: Any
    parts: dict[str, _Part]
    random: Any
    shapes: dict[str, Any]

    def streams(self, key: Any) -> Any:
        """Random streams at their start, each of a key of its own."""
        leaves, structure = jax.tree.flatten(self.random)
        keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, list(map(_stream, leaves, keys)))


def _stream(leaf: Any, key: Any) -> Any:
    """The key, or keys, of a stream, or the count of the numbers that were drawn of it: 0."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jax.random.split(key, leaf.shape) if leaf.shape else key


@functools.lru_cache(maxsize=32)
def _structure(make: Made | Given) -> _Structure:
    from flax import nnx

    # A real module, and no abstract one: while JAX traces, NNX takes arrays that are no variables for static.
    with jax.ensure_compile_time_eval():
        module = make(None if isinstance(make, Given) else nnx.Rngs(0))
        shapes = jax.eval_shape(lambda: _variables(module))
        module.train()
        trained, (params, random, rest) = _split(module)
        module.eval()
        evaluated, _ = _split(module)
    parts = dict(zip(COLLECTIONS, map(_Part.of, (params, rest)), strict=True))
    return _Structure(trained, evaluated, parts, jax.eval_shape(lambda: random), shapes)


def _variables(module: nnx.Module) -> dict[str, Any]:
    """A module's parameters and other variables, those of the two that there are, as JAX's arrays.

    Raises:
      ValueError: a random key that NNX does not know as one; no checkpoint could hold it.
    """
    _, (params, _, rest) = _split(module)
    found = {name: _named(part) for name, part in zip(COLLECTIONS, (params, rest), strict=True) if part}
    for path, leaf in flatten_dict(found).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"model: {'.'.join(path[1:])} is a random key that NNX takes for a constant: keep the nnx.Rngs in its "
                f"place, and draw from that."
            )
    arrays: dict[str, Any] = jax.tree.map(jnp.asarray, found)
    return arrays


def _split(module: nnx.Module) -> tuple[Any, tuple[Any, Any, Any]]:
    """A module's graph, and its parameters, its random streams and its other variables."""
    from flax import nnx

    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return graph, tuple(states)  # type: ignore[return-value]


def _named(state: Any) -> dict[str, Any]:
    """The arrays of a state as nested dicts with text for keys, which a checkpoint can hold."""
    return unflatten_dict(dict(_leaves(state)))


def _leaves(state: Any) -> list[tuple[Path, Any]]:
    """The leaves of a state with their paths, without the last step into a variable."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    into = jax.tree_util.GetAttrKey
    return [(tuple(_text(step) for step in path if not isinstance(step, into)), leaf) for path, leaf in found]


def _text(step: Any) -> str:
    return jax.tree_util.keystr((step,), simple=True)


def code_of(network: Any) -> Any:
    """The class or function that defines a network."""
    if isinstance(network, NNXNetwork):
        return network.make.make if isinstance(network.make, Made) else type(network.make.module)
    return type(network.module if isinstance(network, LinenNetwork) else network)
