"""robust_jax: image classifiers that resist intensity changes and deformations, trained and measured in JAX.

One idea: a perturbation space, that can be penalised, attacked and trained at.

    import robust_jax as rj

    threat = rj.ThreatModel("flow", norm="linf", radius=0.155)
    result = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), steps=40)
    penalty = rj.gradient_norm(loss_fn, images, "flow", norm="l2", power=2)

Names are imported when they are first used: attacking a function loads nothing for drawing, data or checkpoints.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_jax import attacks, losses, models, norms, objectives, perturbations
    from robust_jax.evaluation.evaluate import evaluate
    from robust_jax.evaluation.page import report
    from robust_jax.evaluation.paired import compare
    from robust_jax.evaluation.robustness import robustness
    from robust_jax.evaluation.show import show
    from robust_jax.evaluation.summary import summarise
    from robust_jax.models import bind, model
    from robust_jax.penalties.gradient_norms import first_order_gain, gradient_norm, steepest, value_and_gradient_norm
    from robust_jax.penalties.local_flatness import local_flatness
    from robust_jax.spaces import Perturbation, ThreatModel, dual, normalized_to_pixels, warp
    from robust_jax.training import train
    from robust_jax.workdir import load

__version__ = "0.1.0"

# Package -> what of it is public here; itself, where that is all.
_FACE = {
    "attacks": (), "losses": (), "models": ("bind", "model"), "norms": (), "objectives": (), "perturbations": (),
    "evaluation": ("evaluate", "robustness", "show", "summarise"),
    "evaluation.page": ("report",), "evaluation.paired": ("compare",),
    "penalties": ("first_order_gain", "gradient_norm", "local_flatness", "steepest", "value_and_gradient_norm"),
    "spaces": ("Perturbation", "ThreatModel", "dual", "normalized_to_pixels", "warp"),
    "training": ("train",), "workdir": ("load",),
}  # fmt: skip
_PLACES = {name: package for package, names in _FACE.items() for name in names}

__all__ = [  # noqa: PLE0604
    "Perturbation", "ThreatModel", "attacks", "bind", "compare", "dual", "evaluate", "first_order_gain",
    "gradient_norm", "load", "local_flatness", "losses", "model", "models", "normalized_to_pixels", "norms",
    "objectives", "perturbations", "report", "robustness", "show", "steepest", "summarise", "train",
    "value_and_gradient_norm", "warp",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(f"robust_jax.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if importlib.util.find_spec(f"robust_jax.{name}"):
        return importlib.import_module(f"robust_jax.{name}")
    raise AttributeError(f"module 'robust_jax' has no attribute {name!r}: it has {__all__}.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
