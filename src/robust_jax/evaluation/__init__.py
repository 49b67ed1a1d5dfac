"""Evaluation: accuracy clean and under attacks, example by example, and signs that the numbers mislead.

Drawing, data and checkpoints are loaded when `evaluate` is called: measuring a function of images needs none of them.
"""

from robust_jax.evaluation.attack import Attack, Source
from robust_jax.evaluation.evaluate import evaluate
from robust_jax.evaluation.robustness import robustness
from robust_jax.evaluation.show import show
from robust_jax.evaluation.summary import summarise

__all__ = ["Attack", "Source", "evaluate", "robustness", "show", "summarise"]
