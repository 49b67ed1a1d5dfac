"""What a run leaves in its folder: its config, its checkpoints, and how they are found again."""

from robust_jax.workdir.runs import Trained, load

__all__ = ["Trained", "load"]
