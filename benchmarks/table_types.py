"""What a table of results is made of: rows, weights that are chosen on validation images, and attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A weight that is chosen on validation images, so that rows have about the same clean accuracy.

    The values are trained in this order until the clean accuracy of one is at most ``within`` percentage points below
    that of the row ``like``; if none is, the last one stands. The first seed chooses for all.

    Attributes:
      key: of the config.
      values: from the largest to the smallest.
      like: a row.
      within: in percentage points.
    """

    key: str
    values: tuple[float, ...]
    like: str
    within: float = 0.5

    def rule(self) -> dict[str, Any]:
        """All but the values, of which not all need have been tried."""
        return {"key": self.key, "like": self.like, "within": self.within}


class Row(NamedTuple):
    """One way of training: what is printed, and its config `NAME[:ARGUMENT][:KEY=VALUE...]`."""

    label: str
    config: str
    choice: Choice | None = None


class Universal(NamedTuple):
    """One δ for all images, made in ``epochs`` passes over the first ``examples`` images of a split not trained on.

    Many passes: region adversarial training makes its own δ in 20, and must not be judged by the search it was trained
    against.
    """

    perturbation: str
    radius: float
    examples: int = 100
    split: str = "validation"
    epochs: int = 100


class Table(NamedTuple):
    """One table in one size.

    Attributes:
      title: one line.
      rows: by their names on the command line.
      common: overrides of all rows; those of a row itself win.
      attacks: column -> an entry of a config's `attacks`.
      worst: the name of a further column -> all columns of one threat model, whose worst case per image it is.
      images: the number of test images that are attacked, the first ones.
      seeds: of training and attacks.
      pairs: of rows that are compared image by image, the better one first if the table's claim holds.
      universal: the name of two further columns -> a δ for all images, whose targeted success and the accuracy under
        whose untargeted one they are.
      select_by: the column that chooses checkpoints on validation images, where a row's config has no select_by of its
        own; empty: as the config says.
    """

    title: str
    rows: Mapping[str, Row]
    common: tuple[str, ...]
    attacks: Mapping[str, Mapping[str, Any]]
    worst: Mapping[str, tuple[str, ...]]
    images: int
    seeds: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    universal: Mapping[str, Universal] = {}
    select_by: str = ""


BALL = ("perturbation", "norm", "radius")
"""The keys of an attack that say in which ball it searches."""


def in_ball_of(name: str, attacks: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The attacks in the ball of one of them, itself among them."""
    return tuple(n for n, other in attacks.items() if all(other[key] == attacks[name][key] for key in BALL))


def against(rows: Mapping[str, Row], baseline: str) -> tuple[tuple[str, str], ...]:
    """Each other row with the baseline."""
    return tuple((row, baseline) for row in rows if row != baseline)
