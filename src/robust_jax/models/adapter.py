"""`model`: a trained network of any library as the function of images that attacks and penalties take.

    logits_fn = rj.model(network)                        # NNX, Keras, PyTorch; Equinox with per_image=True
    logits_fn = rj.model(network, variables)             # Linen, Haiku
    logits_fn = rj.model(apply, weights)                 # any function apply(weights, images) -> logits
    rj.attacks.pgd(logits_fn, images, labels, threat, key=key)

The result is a pytree of the network's arrays: an attack compiles once for all weights, and penalties can be
differentiated with respect to them. Networks are used as in evaluation: running statistics, no dropout. None of the
libraries is imported unless the network is one of its own.

What a network reads besides its weights, such as a global number, is part of the compiled program, as under `jax.jit`:
after a change call `jax.clear_caches()`. A function without weights is looked at again in every evaluation.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from robust_jax.attacks import compiled
from robust_jax.attacks.wrappers import black_box
from robust_jax.checks import check_images
from robust_jax.models.network import Fixed, check_variables, in_mode, mode_settings
from robust_jax.options import shown
from robust_jax.options.hints import described

Apply = Callable[[Any, Array], Any]
"""``apply(weights, images) -> logits``; equal ones share compiled programs."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["apply", "channels_first", "per_image"]
)
@dataclass(frozen=True, eq=False)
class Model:
    """A network and its weights: a function of images, and a pytree of the weights. Made by `model`."""

    apply: Apply
    weights: Any
    channels_first: bool = False
    per_image: bool = False

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Logits of the images.

        Raises:
          ValueError: images that are no floats ``[B, H, W, C]``, such as bytes.
        """
        check_images(images, in_box=False)
        x = jnp.moveaxis(jnp.asarray(images), -1, 1) if self.channels_first else images
        if self.per_image:
            return jax.vmap(partial(self.apply, self.weights))(x)
        logits: Array = self.apply(self.weights, x)
        return logits

    @property
    def is_structured(self) -> bool:
        """Whether the weights are all that the logits depend on; a function without weights may read anything."""
        return not isinstance(self.apply, _Function)

    def __repr__(self) -> str:
        name = getattr(self.apply, "__name__", type(self.apply).__name__)
        return f"Model({name}, {shown.numbers(self.weights)})"


def model(network: Any, variables: Any = None, *, channels_first: bool | None = None, per_image: bool = False) -> Model:
    """A network of Linen, NNX, Equinox, Haiku, Keras or PyTorch, or a function, as a function of images.

    Args:
      network: one of

        - a Linen module, with its ``variables``;
        - an NNX module;
        - an Equinox module, with ``per_image=True`` unless it takes batches, and with its ``variables=state`` if it
          has one, as for `equinox.nn.BatchNorm`;
        - what `haiku.transform` returns, with ``variables=params``, or `haiku.transform_with_state`, with
          ``variables=(params, state)``, of a function of images, and of ``is_training`` or the like, which is False;
        - a Keras model, with Keras on JAX (``KERAS_BACKEND=jax``); its last layer should give logits;
        - a PyTorch module, for attacks without gradients (`square`, `nes`, ...): JAX does not see those of PyTorch. For
          all others convert it, see `robust_jax.models.from_torch`;
        - a function ``(variables, images) -> logits``, or without variables ``images -> logits``.
      variables: the weights, where the network does not hold them.
      channels_first: whether the network takes ``[B, C, H, W]``; by default if it is of PyTorch.
      per_image: whether it takes single images, ``[H, W, C]`` or ``[C, H, W]``, and returns ``[K]``.

    Returns:
      Images ``[B, H, W, C]`` in [0, 1] to logits ``[B, K]``, a pytree of the weights as they are now: what becomes of
      those of an NNX or Keras network later is not seen. What the network reads besides
      its weights, such as a global number, is fixed when an attack first compiles, as under `jax.jit`.

    Raises:
      ValueError: no network, or variables that are missing or one too many.

    Example::

        logits_fn = rj.model(eqx_network, channels_first=True, per_image=True)
        result = rj.attacks.auto_attack(logits_fn, images, labels, threat, key=jax.random.key(0))
    """
    for is_of, adapted in _LIBRARIES:
        if is_of(network):
            apply, weights = adapted(network, variables)
            first = adapted is _torch if channels_first is None else channels_first
            return Model(apply, weights, first, per_image)
    raise ValueError(
        f"model: {described(network)} is no network: give one of Linen, NNX, Equinox, Haiku, Keras or PyTorch, or a "
        f"function (variables, images) -> logits."
    )


def _is_of(library: str, name: str) -> Callable[[Any], bool]:
    """Whether something is an instance of a class of a library, which is imported already if that is so."""

    def is_of(network: Any) -> bool:
        kind = getattr(sys.modules.get(library), name, None)
        return isinstance(kind, type) and isinstance(network, kind)

    return is_of


def _needs(what: str, variables: Any, expected: str) -> None:
    if variables is None:
        raise ValueError(f"model: {what} holds no weights: give them as well, rj.model(network, {expected}).")


def _has_its_own(what: str, variables: Any) -> None:
    if variables is not None:
        raise ValueError(f"model: {what} holds its weights: leave out variables={described(variables)}.")


@dataclass(frozen=True)
class _Linen:
    fixed: Fixed

    def __call__(self, variables: Any, images: Array) -> Any:
        module = self.fixed.module
        return in_mode(module, False).apply(variables, images, **mode_settings(type(module).__call__, False))


def _linen(network: Any, variables: Any) -> tuple[Apply, Any]:
    _needs("a Linen module", variables, "variables")
    check_variables("model", variables)
    return _Linen(Fixed(network)), variables


@dataclass(frozen=True)
class _NNX:
    structure: Any

    def __call__(self, state: Any, images: Array) -> Any:
        from flax import nnx

        network = nnx.merge(self.structure, state)
        return network(images, **mode_settings(type(network).__call__, False))


def _nnx(network: Any, variables: Any) -> tuple[Apply, Any]:
    from flax import nnx

    _has_its_own("an NNX module", variables)
    copy = nnx.clone(network)
    copy.eval()  # the user's own is left unchanged
    structure, state = nnx.split(copy)
    return _NNX(structure), state


@dataclass(frozen=True)
class _Pytree:
    """A module that is a pytree, of which only the arrays are weights."""

    structure: Any
    static: tuple[Any, ...]

    def __call__(self, weights: tuple[list[Any], Any], images: Array) -> Any:
        arrays, state = weights
        network = compiled.join(arrays, self.structure, self.static)
        called = network if state is None else lambda x: network(x, state)[0]
        try:
            return called(images)
        except Exception:
            if _is_accepted(jax.vmap(called), images):
                raise ValueError("model: the Equinox module takes single images: give per_image=True.") from None
            raise


def _is_accepted(function: Callable[[Array], Any], images: Array) -> bool:
    try:
        jax.eval_shape(function, images)
    except Exception:
        return False
    return True


def _equinox(network: Any, variables: Any) -> tuple[Apply, Any]:
    import equinox

    if not isinstance(variables, equinox.nn.State):
        _has_its_own("an Equinox module", variables)
    arrays, structure, static = compiled.split(equinox.nn.inference_mode(network))
    return _Pytree(structure, static), (arrays, variables)


@dataclass(frozen=True)
class _Haiku:
    apply: Callable[..., Any]
    with_state: bool
    key: tuple[None, ...]
    mode: tuple[tuple[str, bool], ...]

    def __call__(self, variables: Any, images: Array) -> Any:
        given = variables if self.with_state else (variables,)
        found = self.apply(*given, *self.key, images, **dict(self.mode))
        return found[0] if self.with_state else found


def _haiku(network: Any, variables: Any) -> tuple[Apply, Any]:
    with_state = type(network).__name__ == "TransformedWithState"
    _needs("a Haiku transform", variables, "(params, state)" if with_state else "params")
    if with_state and not (isinstance(variables, tuple) and len(variables) == 2):
        raise ValueError(f"model: give variables=(params, state) of Haiku, not {described(variables)}.")
    # Without a key: `haiku.without_apply_rng` has taken that parameter away.
    key = (None,) if "rng" in list(inspect.signature(network.apply).parameters)[: 2 + with_state] else ()
    function = getattr(network.apply, "_original_fn", None)  # the user's own
    mode = mode_settings(function, False) if callable(function) else {}
    return _Haiku(network.apply, with_state, key, tuple(mode.items())), variables


@dataclass(frozen=True)
class _Keras:
    network: Any

    def __call__(self, variables: Any, images: Array) -> Any:
        return self.network.stateless_call(*variables, images, training=False)[0]


def _keras(network: Any, variables: Any) -> tuple[Apply, Any]:
    _has_its_own("a Keras model", variables)
    backend = sys.modules["keras"].backend.backend()
    if backend != "jax":
        raise ValueError(f"model: Keras runs on {backend} here: set KERAS_BACKEND=jax before keras is imported.")
    groups = (network.trainable_variables, network.non_trainable_variables)
    return _Keras(network), tuple([variable.value for variable in group] for group in groups)


@dataclass(frozen=True)
class _Torch:
    network: Any

    def __call__(self, weights: Any, images: Array) -> Any:
        return black_box(self._logits, _classes(self, tuple(images.shape[1:])))(images)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        import torch

        training = [module for module in self.network.modules() if module.training]
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), torch.zeros(()))
        try:
            with torch.no_grad():
                x = torch.tensor(images).to(device=weight.device, dtype=weight.dtype)
                logits: np.ndarray = self.network.eval()(x).float().cpu().numpy()
        finally:
            for module in training:  # the user's own is left as it was
                module.training = True
        return logits


def _classes(network: _Torch, image_shape: tuple[int, ...]) -> int:
    logits = network._logits(np.zeros((1, *image_shape), np.float32))
    if logits.ndim != 2:
        raise ValueError(f"model: for one image the PyTorch module returns {logits.shape}, not logits [1, K].")
    return logits.shape[1]


def _torch(network: Any, variables: Any) -> tuple[Apply, Any]:
    _has_its_own("a PyTorch module", variables)
    return _Torch(network), ()


@dataclass(frozen=True)
class _Function:
    function: Callable[[Array], Any]

    def __call__(self, weights: Any, images: Array) -> Any:
        return self.function(images)


def _call(function: Any, images: Array) -> Any:
    return function(images)


def _function(network: Any, variables: Any) -> tuple[Apply, Any]:
    if variables is not None:
        return network, variables
    if jax.tree_util.all_leaves([network]):
        return _Function(network), ()
    return _call, network  # a pytree, such as `bind` returns, holds its weights itself


def _is_haiku(network: Any) -> bool:
    return any(_is_of("haiku", name)(network) for name in ("Transformed", "TransformedWithState"))


# The first that recognises a network adapts it.
_LIBRARIES: list[tuple[Callable[[Any], bool], Callable[[Any, Any], tuple[Apply, Any]]]] = [
    (_is_of("flax.linen", "Module"), _linen),
    (_is_of("flax.nnx", "Module"), _nnx),
    (_is_of("equinox", "Module"), _equinox),
    (_is_haiku, _haiku),
    (_is_of("keras", "Model"), _keras),
    (_is_of("torch.nn", "Module"), _torch),
    (callable, _function),
]
