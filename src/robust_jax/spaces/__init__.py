"""What may change: perturbations ``T(x, δ)``, norms of δ, and threat models, which are balls of them.

`perturbations` has the idea and what every space shares; `additive`, `flow` and `affine` are the built-in spaces, each
in a file of its own; `threat_models` has the geometry of their balls, `norms` that of single vectors.
"""

from robust_jax.spaces.norms import dual
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import normalized_to_pixels, warp

__all__ = ["Perturbation", "ThreatModel", "dual", "normalized_to_pixels", "warp"]
