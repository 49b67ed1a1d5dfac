"""Train at: named points, at which the model is run, and weighted terms, each a loss at a point.

A step of a training loop of one's own; `docs/training_your_own.md` has whole loops for several libraries::

    objective = rj.objectives.make_objective(points, terms)
    found = objective.find(model, images, labels, jax.random.split(key, len(images)))  # constants of the step
    loss, outcome = objective.loss(model, found, labels)  # to be differentiated in the weights
    outcome.terms, outcome.accuracy, outcome.state

The model is a function ``images -> logits``, or a `Model`, which has one for training and one for evaluation;
`Model.of` makes it of a network of `robust_jax.models.trainable`. `point` and `term` mark functions of one's own.
"""

from robust_jax.objectives.define import point, term
from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import Objective, make_objective
from robust_jax.objectives.points import Point
from robust_jax.objectives.terms import PointOutput

__all__ = ["Model", "Objective", "Point", "PointOutput", "make_objective", "point", "term"]
