"""`trainable`: a network of one's own as the trainer, and a training loop of one's own, take it."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_jax.models.bound import BoundModel
from robust_jax.models.network import COLLECTIONS, Given, LinenNetwork, Network, NNXNetwork, Variables
from robust_jax.options.hints import described


def trainable(network: Any, variables: Variables | None = None) -> Network:
    """A module of Linen or NNX with `init` and `apply` as pure functions of ``{"params": ..., "batch_stats": ...}``.

    The module is told whether it is trained: by its ``__call__``, if that takes ``train``, ``training``,
    ``deterministic`` or ``use_running_average``; in Linen by a field of that name, and in NNX by `nnx.Module.train`
    and `nnx.Module.eval`, too. The module that is given stays unchanged.

    Args:
      network: a Linen module; an NNX module, which holds its weights; or what `robust_jax.bind` returns.
      variables: the weights of a Linen module, if training is to start from them.

    Returns:
      A network; its ``held`` are the weights that came with it.

    Raises:
      ValueError: something else; variables for an NNX module; variables of other collections.

    Example::

        network = rj.models.trainable(Net(rngs=nnx.Rngs(0)))
        variables = network.held
        model = rj.objectives.Model.of(network, variables, jax.random.key(1))
        loss, outcome = objective(model, images, labels, keys)
        new_batch_stats = outcome.state
    """
    if isinstance(network, tuple | list) and len(network) == 2 and variables is None:
        network, variables = network
    if isinstance(network, BoundModel) and variables is None:
        network, variables = network.model, network.variables
    if isinstance(network, LinenNetwork) and variables is not None:
        network = network.module
    if variables is not None and not isinstance(network, nn.Module):
        raise ValueError(f"model: {described(network)} holds its weights: leave out variables={described(variables)}.")
    if isinstance(network, NNXNetwork | LinenNetwork):
        return network
    if isinstance(network, nn.Module):
        if variables is None and _may_be_told_to_train(network):
            return network
        held = None if variables is None else jax.tree.map(jnp.asarray, checked_variables(variables))
        return LinenNetwork(network, held)
    if is_nnx(network):
        return NNXNetwork(Given(network))
    raise ValueError(
        f"model: {described(network)} cannot be trained here: give a module of Linen or NNX. For networks of other "
        f"libraries docs/training_your_own.md has the training loops."
    )


def _may_be_told_to_train(network: nn.Module) -> bool:
    """Whether a module takes ``train``, and does not train without it: others are told at every call."""
    train = inspect.signature(type(network).__call__).parameters.get("train")
    return train is not None and train.default is False


def is_nnx(network: Any) -> bool:
    """Whether something is an NNX module, or a class of them."""
    kind = getattr(sys.modules.get("flax.nnx"), "Module", None)
    return kind is not None and (isinstance(network, kind) or isinstance(network, type) and issubclass(network, kind))


def checked_variables(variables: Variables) -> dict[str, Any]:
    """The variables as a dict.

    Raises:
      ValueError: collections that training does not keep, or no params.
    """
    if unknown := sorted({*variables} - {*COLLECTIONS}):
        raise ValueError(
            f"model: it has variables {unknown}: training keeps {list(COLLECTIONS)} only. Let it keep what it updates "
            f"besides its weights in batch_stats."
        )
    if not variables.get("params"):
        raise ValueError("model: it has no params: there is nothing to train.")
    return dict(variables)
