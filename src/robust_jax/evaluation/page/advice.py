"""What to do about each warning of an evaluation.

Signs of masked gradients say so themselves: the first paragraph of a sign's docstring is what was seen, the second, if
it has one, what to do.
"""

from __future__ import annotations

import inspect
import re

from robust_jax.evaluation import masking

GENERAL = (
    "Attack with auto_attack and with more steps and restarts; if one breaks clearly more, the accuracies above are too "
    "high."
)
_OF_NUMBERS = (
    (r"non-finite logits",
     "Look for overflow or division by zero in the model. The examples count as lost, so the accuracy is not too high."),
    (r"left its ball",
     "The attack used more than it was allowed: do not quote this number for that radius, and mend the attack."),
    (r"differs by .* from T\(x, delta\)",
     "The images are not those that the threat model gives: do not quote this number, and mend the attack."),
    (r"x the radius breaks \d+ examples fewer",
     "Raise the attack's steps and restarts until the curve falls everywhere; quote the lower accuracy until then."),
)  # fmt: skip


def advise(warning: str) -> dict[str, str]:
    """The warning with what it means and what to do: name, text, meaning, advice."""
    name, _, text = warning.partition(": ")
    if (sign := masking.signs().get(name)) is not None:
        first, *rest = (inspect.getdoc(sign) or "").split("\n\n")
        advice = " ".join(rest[0].split()) if rest else GENERAL
        return {"name": name.replace("_", " "), "text": text, "meaning": " ".join(first.split()), "advice": advice}
    advice = next((advice for pattern, advice in _OF_NUMBERS if re.search(pattern, warning)), GENERAL)
    return {"name": name, "text": text or warning, "meaning": "", "advice": advice}
