"""What to do about each warning of an evaluation: warnings say it themselves, most of them in a sentence of its own."""

from __future__ import annotations

import re

GENERAL = "Use auto_attack, and more steps and restarts. If one breaks clearly more, the accuracies above are too high."
_OF_NUMBERS = (
    (r"^checkpoint: ",
     "These are numbers of another checkpoint than was asked for: put back a copy of it, or train again."),
    (r"^training: ",
     "These are numbers of a network that is not trained to its end: let robust-jax train go on, and measure again."),
    (r"non-finite logits",
     "Look for overflow or division by zero in the model. These images count as lost."),
    (r"left its ball",
     "The attack used more than it was allowed: do not quote this number for that radius, and mend the attack."),
    (r"differs by .* from T\(x, delta\)",
     "The images are not those that the threat model gives: do not quote this number, and mend the attack."),
    (r"x the radius breaks \d+ examples fewer",
     "Raise the attack's steps and restarts until the curve falls everywhere; quote the lower accuracy until then."),
)  # fmt: skip


def advise(warning: str) -> dict[str, str]:
    """The warning in three parts: the name of what gave it, what was seen, what to do.

    Example::

        advise("black_box: Square breaks 9 images more than pgd: gradients are masked. Use auto_attack")
    """
    name, _, text = warning.partition(": ")
    if not text:
        name, text = "", warning
    if known := next((advice for pattern, advice in _OF_NUMBERS if re.search(pattern, warning)), ""):
        return {"name": name, "seen": text, "advice": known}
    seen, _, advice = text.partition(". ")
    if not advice and "masked" not in seen:
        seen, _, advice = text.rpartition(": ")
    if not seen or not advice:
        seen, advice = text, GENERAL
    return {"name": name.replace("_", " "), "seen": seen, "advice": advice[0].upper() + advice[1:]}
