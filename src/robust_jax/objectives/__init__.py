"""Train at: named points, at which the model is run, and weighted terms, each a loss at a point."""

from robust_jax.objectives.define import point, term
from robust_jax.objectives.objective import Objective, make_objective
from robust_jax.objectives.points import Model, Point
from robust_jax.objectives.terms import PointOutput

__all__ = ["Model", "Objective", "Point", "PointOutput", "make_objective", "point", "term"]
