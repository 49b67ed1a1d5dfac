"""`show`: what `robustness` measured as a table, warnings and files, like those of an evaluated workdir."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.summary import summarise
from robust_jax.files import checksum, folder_name
from robust_jax.options.signatures import checks_arguments


def _refuse_what_is_not_ours(path: Path) -> None:
    """Raises ValueError for a file that no earlier call of `show` wrote: it would be replaced."""
    from robust_jax.evaluation import stored

    if not os.path.lexists(path):
        return
    way_out = "give another folder to save="
    try:
        report = stored.read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"save={str(path.parent)!r}: {error} It would be replaced: {way_out}.") from error
    if "identity" in report:
        raise ValueError(f"save={str(path.parent)!r} holds an evaluation of a workdir: {way_out}.")


@checks_arguments
def show(
    measured: PerExample,
    save: str | os.PathLike[str] | None = None,
    *,
    name: str = "model",
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Prints accuracies with their intervals and what casts doubt on them; with a folder, writes them there.

    Args:
      measured: the result of `robustness`.
      save: a folder, made if it does not exist, for ``evaluation.json``, ``per_example.npz``,
        ``adversarial_NAME.png`` and ``robustness_NAME.png``, as `evaluate` writes them. What an earlier call wrote
        there is replaced.
      name: of the model, above its column.
      class_names: for the pictures.

    Returns:
      The content of ``evaluation.json``, see `summarise`.

    Raises:
      ValueError: no name of a folder, or one that cannot be written; fewer names than classes.

    Example::

        attacks = {"aa": dict(kind="auto_attack", perturbation="additive", radius="8/255")}
        rj.show(rj.robustness(logits_fn, (images, labels), attacks, key=jax.random.key(0)), save="my_network")
    """
    from robust_jax.evaluation import table

    summary = summarise(measured) | {"class_names": list(class_names)}
    summary["examples"] = checksum((measured.label, measured.id, measured.images))
    classes = max(int(measured.label.max()), int(measured.prediction.max())) + 1
    if class_names and len(class_names) < classes:
        raise ValueError(f"class_names has {len(class_names)} names for at least {classes} classes: give one for each.")
    if save is None:
        table.show({name: summary})
        return summary
    from robust_jax.evaluation import report, stored  # here: drawing takes a second to load

    folder = Path(folder_name("save", save))
    folder.mkdir(parents=True, exist_ok=True)
    stored.refuse_foreign(folder, stored.REPORT, "give another folder to save=")
    _refuse_what_is_not_ours(folder / stored.REPORT)
    stored.forget(folder)
    summary = summary | report.write(folder, summary, measured, 10, name)
    table.show({name: summary}, [folder])
    return summary
