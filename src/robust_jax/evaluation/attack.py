"""An attack to evaluate with: its function, threat model and settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_jax.attacks import ATTACKS
from robust_jax.attacks.define import about
from robust_jax.checks import check_attack_names, check_curve, check_function
from robust_jax.files import checksum, plain
from robust_jax.losses import LOSSES
from robust_jax.options import check_call
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel


def built(attacks: Mapping[str, Any], build: Callable[[str, Any], Attack]) -> dict[str, Attack]:
    """The attacks of an evaluation; entries of a config are built.

    Args:
      attacks: NAME -> `Attack`, or its entry in a config.
      build: ``(name, entry) -> Attack``, see `robust_jax.evaluation.from_config.attack_from`.

    Raises:
      ValueError: a name that cannot be used, two that are one name of a file, or something that is no attack.
    """
    check_attack_names(attacks)
    for name, given in attacks.items():
        if not isinstance(given, Attack) and not hasattr(given, "items"):  # a ConfigDict is no Mapping
            raise ValueError(
                f"attacks.{name} is {given!r}: give Attack(function, threat, settings), or dict(kind=..., "
                f"perturbation=..., radius=..., **options)."
            )
    return {name: given if isinstance(given, Attack) else build(name, given) for name, given in attacks.items()}


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


class Source(NamedTuple):
    """Another model, whose adversarial images are tried on the evaluated one: a transfer attack.

    Attributes:
      name: in reports.
      logits_fn: images ``[B, H, W, C]`` in [0, 1] to logits ``[B, K]``.
    """

    name: str
    logits_fn: Callable[..., Any]

    @property
    def weights(self) -> str:
        """Their checksum; that of no weights of a function which holds none as a pytree."""
        return checksum(self.logits_fn)


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack to evaluate with.

    Example::

        Attack(attacks.pgd, ThreatModel("flow", "linf", 0.155), {"steps": 20, "restarts": 3}, curve=(0, 0.5, 1, 2))

    Attributes:
      function: an attack of `robust_jax.attacks`, or a function like them:
        `(logits_fn, images, labels, threat, *, key, **settings)`, jittable, with one key per example,
        whose result has `images` and `delta`. The keywords of a `functools.partial` become settings.
      threat: the threat model. Its radius is traced, so that all radii of a curve share one compilation.
      settings: keyword arguments of `function`, hashable. A `step_size` scales with the radius.
      curve: multiples of the radius at which the accuracy is measured too; 0 is the clean accuracy.
      source: the model that is attacked, if it is not the evaluated one: a transfer attack.

    Raises:
      ValueError: a multiple that is negative or not finite, or more than 1,000 of them; ``targeted=True``; for a
        function defined by `robust_jax.attacks.define.attack`, an unknown option, one out of its type, choices or
        range, or a threat model that the attack does not take.
    """

    function: Callable[..., Any]
    threat: ThreatModel
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curve: Sequence[float] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        if not callable(self.function) or not isinstance(self.threat, ThreatModel):
            raise ValueError(
                f"Attack takes a function of robust_jax.attacks and a ThreatModel; got function={self.function!r}, "
                f"threat={self.threat!r}."
            )
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings={self.settings!r} must be a dict of options.")
        function: Any = self.function
        settings = dict(self.settings)
        while isinstance(function, functools.partial) and not function.args:
            function, settings = function.func, {**function.keywords, **settings}
        # They are static arguments of a compiled function, so lists become tuples.
        settings = {name: _hashable(value) for name, value in settings.items()}
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "settings", settings)
        check_curve("curve", self.curve)
        radii = self.threat.radius if self.threat.perturbation.parts else (self.threat.radius,)
        if any(np.ndim(radius) > 1 for radius in radii):
            raise ValueError(
                f"radius of shapes {[np.shape(r) for r in radii]}: an evaluation takes one radius, or one per entry of "
                f"δ's last axis; radii of single examples would be those of other ones in the next batch."
            )
        if self.source is not None:
            if not isinstance(self.source, Source):
                raise ValueError(f"source={self.source!r}: give robust_jax.evaluation.Source(name, logits_fn).")
            if not isinstance(self.source.name, str) or not self.source.name:
                raise ValueError(f"source: name={self.source.name!r} must be text.")
            check_function("source: logits_fn", self.source.logits_fn)
        if self.settings.get("targeted"):
            raise ValueError(
                "targeted=True: an evaluation knows true labels only, which are no targets. For targeted attacks call "
                "the attack itself with the target classes as labels."
            )
        self._check_settings()

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        source = f", source={self.source.name!r}" if self.source else ""
        return f"Attack({getattr(self.function, '__name__', 'attack')}, {self.threat!r}{settings}{source})"

    def _check_settings(self) -> None:
        """Raises ValueError for what a function defined as an attack does not take."""
        known = about(self.function)
        if known is None:
            return
        name, parameters = self.function.__name__, inspect.signature(self.function).parameters
        valid = sorted(n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "key")
        if unknown := sorted(set(self.settings) - set(valid)):
            raise ValueError(f"{name} has no option {unknown}: valid are {valid}.")
        check_call(name, self.function, self.settings)
        if known.check is not None:
            known.check(name, self.threat)

    def multiples(self) -> list[float]:
        """The multiples of the radius at which the attack runs, in increasing order; 1 is one of them, 0 is not."""
        return sorted({1.0, *map(float, self.curve)} - {0.0})

    def described_threat(self) -> dict[str, Any]:
        """The threat model in the form that JSON has for it."""
        return {
            "perturbation": self.threat.perturbation.name,
            "norm": plain(self.threat.norm),
            "radius": plain(self.threat.radius),
            "unit": threat_models.unit(self.threat),
        }

    def all_settings(self) -> dict[str, Any]:
        """The settings with the function's defaults filled in: what runs, for the report."""
        parameters = inspect.signature(self.function).parameters.values()
        named = {p.name: p.default for p in parameters if p.default is not p.empty}
        source = {"source": self.source.name} if self.source else {}
        settings = named | dict(self.settings)
        settings |= {"loss": part_name(settings["loss"], LOSSES)} if "loss" in settings else {}
        return {"attack": part_name(self.function, ATTACKS)} | source | settings


def part_name(part: Any, built_in: Mapping[str, Any]) -> Any:
    """The name of a built-in function; of one's own ``module:name``, as configs have it.

    Of one that no config could name, since it lies in a function or a notebook, its own name, unless that is of a
    built-in one. What is no function stays.
    """
    if not callable(part) or any(part is known for known in built_in.values()):
        return plain(part)
    part = inspect.unwrap(part)
    if isinstance(part, functools.partial):
        given = [*(part_name(one, {}) for one in part.args)]
        given += [f"{key}={part_name(one, {})}" for key, one in part.keywords.items()]
        return f"{part_name(part.func, built_in)}({', '.join(map(str, given))})"
    name = getattr(part, "__name__", type(part).__name__)
    whole = f"{getattr(part, '__module__', '')}:{getattr(part, '__qualname__', type(part).__qualname__)}"
    is_nameable = "<" not in whole and not whole.startswith(("__main__:", ":"))
    return whole if is_nameable or name in built_in else name
