"""An attack of an evaluation from its entry in a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_jax import parallel
from robust_jax.config.build import build_attack
from robust_jax.config.objects import NONE, Objects
from robust_jax.evaluation.attack import Attack, Source
from robust_jax.options import with_path
from robust_jax.options.signatures import checks_arguments
from robust_jax.workdir import runs, saved_config


@checks_arguments
def attack_from(
    name: str,
    spec: Mapping[str, Any],
    data_dir: str | None = None,
    trust: Sequence[str] = (),
    objects: Objects = NONE,
) -> Attack:
    """An `Attack` from its entry in a config.

    Args:
      name: of the attack in the config and in reports.
      spec: ``dict(kind=..., perturbation=..., norm=..., radius=..., curve=..., source=..., **options)``. ``kind`` is a
        name in `robust_jax.attacks`, or ``"module:name"`` of your own; the options are those of the attack. ``source``
        is the workdir of another model, whose best checkpoint is attacked in place of the evaluated model; that one
        then sees the adversarial images: a transfer attack.
      data_dir: of the prepared datasets, for the source; default: as its config says.
      trust: the modules from which the config of the source may name parts, see
        `robust_jax.workdir.saved_config.read_config`.
      objects: the dataset and the model that the source was trained with, if they were objects.

    Raises:
      ValueError: an unknown kind, loss or option, no radius, or a source that is no workdir; valid choices are listed.
    """
    path = f"attacks.{name}"
    built = build_attack(path, spec)
    source = None
    if built.source:
        config = saved_config.read_config(built.source, trust)
        needed = runs.objects_for(config, objects)
        if needed.missing(config):
            raise ValueError(
                f"{path}.source={str(built.source)!r} was trained with a dataset or model that was given as a Python "
                f"object: give the attack as robust_jax.evaluation.Attack(..., source=Source(NAME, "
                f"rj.load(WORKDIR, dataset=..., model=...).logits_fn))."
            )
        trained = runs.restored(built.source, "best", data_dir, trust, needed)
        source = Source(str(built.source), parallel.everywhere(trained.logits_fn))
    attack: Attack = with_path(path, Attack, built.function, built.threat, built.settings, built.curve, source)
    return attack
