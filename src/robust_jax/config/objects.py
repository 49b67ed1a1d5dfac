"""A dataset and a model that are given as Python objects, in place of those that a config names.

The config of the run then records them as ``"object:NAME#FINGERPRINT"``: enough to tell another object, not to find
this one. Whoever resumes, loads or evaluates the run gives the same objects.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from robust_jax import data, models
from robust_jax.data import own
from robust_jax.data.known import is_well_known
from robust_jax.extensions import OBJECT, is_object
from robust_jax.models.network import EVALUATED, Given, LinenNetwork, Network, NNXNetwork, code_of
from robust_jax.models.trainable import is_nnx
from robust_jax.options.hints import described


@dataclass(frozen=True)
class Objects:
    """What a run was given as objects; made by `of`.

    Attributes:
      dataset: the dataset or its splits; None for the one that the config names.
      model: a network, or a class or function that makes one; None for the one that the config names.
    """

    dataset: Any = None
    model: Any = None

    @classmethod
    def of(cls, dataset: Any = None, model: Any = None) -> Objects:
        """The objects as `robust_jax.train` takes them.

        Raises:
          ValueError: what is no dataset, or no model that can be trained.
        """
        makes = isinstance(model, type | functools.partial) or inspect.isroutine(model)
        network = model if model is None or makes else models.trainable(model)
        return cls(None if dataset is None else own.splits_of(dataset), network)

    def named(self, config: ConfigDict) -> ConfigDict:
        """The config with the names of the objects.

        Raises:
          ValueError: an option for a dataset or model made by name, which an object has no use for.
        """
        if self.dataset is None and self.model is None:
            return config
        if not isinstance(config, ConfigDict):
            raise ValueError(f"config is {described(config)}: give a ConfigDict, made by robust_jax.config.base.")
        config = config.copy_and_resolve_references()
        if self.dataset is not None:
            _refuse(config, {"data.size": 0}, "images given as an object have a size: give size= to data.from_iterable")
            config.data.name = self.dataset_name
        if self.model is not None:
            if not self._is_made:
                plain = {"model.options": {}, "model.dtype": "float32", "sync_batch_norm": False}
                _refuse(config, plain, "a model object has its own: set it where the object is made")
                _refuse_statistics(config)
                config.model.mean, config.model.std = (0.0,), (1.0,)
            config.model.name = self.model_name
        return config

    @property
    def _is_made(self) -> bool:
        """Whether the model is a class or function that is called with options."""
        return not _is_network(self.model)

    @functools.cached_property
    def dataset_name(self) -> str:
        """As a config records the dataset."""
        name = self.dataset.name if isinstance(self.dataset, data.Dataset) else "own"
        return f"{OBJECT}{name}#{own.fingerprint(self.dataset)}"

    @functools.cached_property
    def model_name(self) -> str:
        """As a config records the model: its class, its fields, and the shapes of its weights if it has them."""
        if self._is_made:
            code, facts = self.model, _facts(self.model)
        else:
            code = code_of(self.model)
            network = self.model.module if isinstance(self.model, LinenNetwork) else self.model
            facts = _fields(network)
            if self.model_variables is not None:
                flat = flatten_dict(self.model_variables, sep="/")
                facts += repr(sorted((path, np.shape(leaf)) for path, leaf in flat.items()))
        while isinstance(code, functools.partial):
            code = code.func
        return f"{OBJECT}{getattr(code, '__name__', type(code).__name__)}#{zlib.crc32(facts.encode()):08x}"

    def split(self, config: Mapping[str, Any]) -> data.Dataset:
        """The dataset object with the splits that it lacks, taken from the others as the config says."""
        given, c = self.dataset, config["data"]
        if isinstance(given, data.Dataset):
            return given
        test = given[-1] if len(given) > 1 else None
        validation = given[1] if len(given) == 3 else c["validation"]
        return own.dataset(given[0], test, validation=validation, test_fraction=c["test"], seed=config["seed"])

    @property
    def network(self) -> Network | None:
        """The model, if it is one, and no function that makes one."""
        return self.model if _is_network(self.model) else None

    @property
    def model_variables(self) -> Any:
        """The weights that the model came with; None if there are none."""
        return getattr(self.model, "held", None) if isinstance(self.model, LinenNetwork | NNXNetwork) else None

    def missing(self, config: Mapping[str, Any]) -> dict[str, str]:
        """What a config records as an object and is not given here: "dataset" or "model" -> its name."""
        names = {"dataset": config["data"]["name"], "model": config["model"]["name"]}
        return {key: name for key, name in names.items() if is_object(name) and getattr(self, key) is None}

    def check_none_missing(self, config: Mapping[str, Any], where: Any) -> None:
        """Raises ValueError if an object that a config records is not given; see `check` for the arguments."""
        for key, name in self.missing(config).items():
            raise ValueError(
                f"{where} was trained with a {key} that was given as a Python object, {name!r}: give it again, in "
                f"Python, by {key}=..., to rj.train, rj.load or rj.evaluate."
            )

    def check(self, config: Mapping[str, Any], where: Any) -> None:
        """Raises ValueError unless the objects are those that a config records, and all that it needs.

        Args:
          config: of a run.
          where: it lies, for messages.
        """
        self.check_none_missing(config, where)
        for key, name in (("dataset", config["data"]["name"]), ("model", config["model"]["name"])):
            if getattr(self, key) is None:
                continue
            if not is_object(name):
                raise ValueError(
                    f"{where} was trained with the {key} {name!r}, which is found by its name: leave out {key}=."
                )
            if name != (now := getattr(self, f"{key}_name")):
                raise ValueError(f"{where} was trained with the {key} {name!r}, and {key}= is {now!r}: give the same.")


NONE = Objects()


def _is_network(model: Any) -> bool:
    return isinstance(model, nn.Module | LinenNetwork | NNXNetwork)


def _refuse_statistics(config: ConfigDict) -> None:
    """Raises ValueError for means and deviations of one's own: a model object would not be given them."""
    mean, std = config.model.mean, config.model.std
    if not is_well_known(mean, std):  # those that `base` fills in are of no weight
        raise ValueError(
            f"model.mean={mean}, model.std={std}: a model object is given images in [0, 1] and normalises "
            f"them itself; or give a class that takes mean and std."
        )


def _refuse(config: ConfigDict, plain: Mapping[str, Any], way_out: str) -> None:
    """Raises ValueError for a key whose value is not the default."""
    for key, default in plain.items():
        value: Any = config
        for step in key.split("."):
            value = value[step]
        if (value.to_dict() if isinstance(value, ConfigDict) else value) != default:
            raise ValueError(f"{key}={value!r}: {way_out}.")


def _facts(value: Any) -> str:
    """What tells values apart, the same in every process: of functions their names, of lambdas what these name."""
    if isinstance(value, functools.partial):
        return f"{_facts(value.func)}({list(map(_facts, value.args))}, {_options(value.keywords)})"
    if not callable(value):
        return _shown(value)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return name + _named(value.__code__) if "<lambda>" in name else name


def _named(code: Any) -> str:
    """The names and constants in a lambda's code; the code itself depends on the version of Python."""
    constants = [_named(one) if inspect.iscode(one) else one for one in code.co_consts if one is not None]
    return repr((code.co_names, constants))


def _options(options: Mapping[str, Any]) -> str:
    return repr({name: _facts(value) for name, value in sorted(options.items())})


def _fields(network: Any) -> str:
    """The fields of a network: of Linen all, of NNX the numbers, texts and functions in classes of one's own."""
    if not isinstance(network, NNXNetwork):
        return _shown(network)
    if not isinstance(network.make, Given):
        return _facts(network.make.make) + _shown(network.make.options)
    from flax import nnx

    modules = [module for _, module in nnx.iter_modules(network.make.module) if not _is_of_flax(module)]
    return repr([(type(module).__qualname__, _options(_static(module))) for module in modules])


def _static(module: Any) -> dict[str, Any]:
    """The numbers, texts and functions that a module of NNX holds, without the mode that it is in."""
    plain = (bool, int, float, str, tuple)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in EVALUATED
        and (isinstance(value, plain) or callable(value) and not is_nnx(value) and not _is_of_flax(value))
    }  # fmt: skip


def _is_of_flax(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "flax"


def _shown(value: Any) -> str:
    with np.printoptions(threshold=sys.maxsize):  # arrays are not abbreviated
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
