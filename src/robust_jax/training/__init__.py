"""Training: the state, one step, and the loop, which resumes where a killed run stopped."""

from robust_jax.training.loop import NonFiniteLossError, train
from robust_jax.training.step import TrainState, init_state, make_train_step

__all__ = ["NonFiniteLossError", "TrainState", "init_state", "make_train_step", "train"]
