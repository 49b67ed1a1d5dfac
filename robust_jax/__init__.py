"""robust_jax: image classifiers that resist intensity changes and deformations, trained and measured in JAX.

One idea: a perturbation space, that can be penalised, attacked and trained at.

    import robust_jax as rj

    threat = rj.ThreatModel("flow", norm="linf", radius=0.155)
    result = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), steps=40)
    penalty = rj.gradient_norm(loss_fn, images, "flow", norm="l2", power=2)
"""

from robust_jax import attacks, losses, models, norms, perturbations
from robust_jax.evaluation import evaluate
from robust_jax.flatness import local_flatness
from robust_jax.gradients import first_order_gain, gradient_norm, steepest, value_and_gradient_norm
from robust_jax.models import bind
from robust_jax.norms import dual
from robust_jax.perturbations import Perturbation
from robust_jax.robustness import robustness
from robust_jax.threat_models import ThreatModel
from robust_jax.training import train
from robust_jax.warping import normalized_to_pixels, warp

__version__ = "0.1.0"

__all__ = [
    "Perturbation",
    "ThreatModel",
    "attacks",
    "bind",
    "dual",
    "evaluate",
    "first_order_gain",
    "gradient_norm",
    "local_flatness",
    "losses",
    "models",
    "normalized_to_pixels",
    "norms",
    "perturbations",
    "robustness",
    "steepest",
    "train",
    "value_and_gradient_norm",
    "warp",
]
