"""How one δ for all images changes what a trained model predicts."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from robust_jax import attacks, losses
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.workdir.runs import Trained


@partial(jax.jit, static_argnames="epochs")
def towards(logits_fn, images, target, threat, key, epochs=20):
    """One δ that sends these images to the class ``target``, once for each: ``[B, ...]``."""
    made = attacks.universal_targeted(logits_fn, images, target, threat, key=key, epochs=epochs, keep="highest_loss")
    return made.delta


@partial(jax.jit, static_argnames="epochs")
def _untargeted(logits_fn, images, labels, threat, key, epochs):
    return attacks.universal_gradient(logits_fn, images, labels, threat, key=key, epochs=epochs).delta


@jax.jit
def _predicted(logits_fn, threat, images, delta):
    return losses.predicted(logits_fn(attacks.apply_universal(threat, images, delta)))


def universal_rates(trained: Trained, threat: ThreatModel, count: int, epochs: int) -> dict[str, float]:
    """How one δ, made in ``epochs`` passes over ``count`` validation images, changes predictions on 1,000 test images.

    Not from training images: region adversarial training has seen the δ of these. Targeted: the fraction of images of
    other classes that are then classified as the target, averaged over all classes. Untargeted: the accuracy that is
    left. At the precision of the run's config.
    """
    with jax.default_matmul_precision(trained.config.precision):
        return _rates(trained, threat, count, epochs)


def _rates(trained: Trained, threat: ThreatModel, count: int, epochs: int) -> dict[str, float]:
    dataset, logits_fn = trained.dataset, trained.logits_fn
    images, labels = trained.examples(count, "validation")
    held_out, truth = trained.examples(min(len(dataset.test), 1000))

    predicted = partial(_predicted, logits_fn, threat, held_out)
    rates = []
    for target in range(dataset.num_classes):
        delta = towards(logits_fn, images, target, threat, jax.random.key(target), epochs=epochs)
        rates.append(float((predicted(delta) == target)[truth != target].mean()))
    uap = _untargeted(logits_fn, images, labels, threat, jax.random.key(0), epochs=epochs)
    return {
        "targeted universal success": float(np.mean(rates)),
        "untargeted universal": float((predicted(uap) == truth).mean()),
    }
