"""Whether the paper's claims hold in a study: differences between its arms, seed by seed.

Arms of one seed share the stages that they have in common, and all are tested on the same images:
what they share cancels in their difference. Intervals are over seeds alone, and know nothing of
other test images.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hpt_jax.augment.policies import ROBUSTNESS
from hpt_jax.report.tables import ResultRow, student

# T given as many steps as the whole chain takes; another study may have run it.
ALL_STEPS = "T@all_steps"

Place = tuple[str, int]  # an arm, and its steps on the target
Budgets = Mapping[str, Sequence[int]]  # arm -> its numbers of steps on the target, ascending


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a difference is above zero.

    Attributes:
      text: the claim, in words.
      plus: what is added up.
      minus: what is taken away, as many.
    """

    text: str
    plus: tuple[Place, ...]
    minus: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured.

    Attributes:
      claim: in words.
      compared: the difference, as a formula of arms.
      differences: of each seed, in their order; fractions in [-1, 1], or [-2, 2] of two pairs.
      mean: of `differences`.
      interval: 95 % of the mean, Student's t; None for one seed.
    """

    claim: str
    compared: str
    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def word(self) -> str:
        """'holds' or 'does not hold' where the whole interval is on one side of zero."""
        if self.interval is not None and self.interval[0] > 0:
            return "holds"
        if self.interval is not None and self.interval[1] < 0:
            return "does not hold"
        return "undecided"


@dataclasses.dataclass(frozen=True)
class Reached:
    """How many steps on the target an arm needs for what another has.

    Attributes:
      goal: the arm and the steps of what is to be reached.
      arm: which is to reach it.
      steps: the fewest of its budgets whose mean does; None: none of them does.
      of_seeds: the same of each seed by itself, in their order.
      longest: the largest of its budgets.
      verdict: of the arm at `steps`, or at `longest`, less the goal.
    """

    goal: Place
    arm: str
    steps: int | None
    of_seeds: tuple[int | None, ...]
    longest: int
    verdict: Verdict


class Results:
    """The test results of one evaluation in one study.

    Args:
      rows: of one study; other evaluations are passed over.
      evaluation: which.

    Attributes:
      budgets: of every arm.
      seeds: ascending.
    """

    def __init__(self, rows: Iterable[ResultRow], evaluation: str):
        self._values: dict[str, dict[Place, dict[int, float]]] = {"val": {}, "test": {}}
        budgets: dict[str, set[int]] = defaultdict(set)
        seeds = set()
        for row in rows:
            if row.evaluation == evaluation:
                seeds.add(row.seed)
                place = (row.arm, row.pretrain_steps)
                self._values[row.split].setdefault(place, {})[row.seed] = row.value
                budgets[row.arm].add(row.pretrain_steps)
        self.seeds = sorted(seeds)
        self.budgets: Budgets = {arm: sorted(found) for arm, found in budgets.items()}

    def mean(self, place: Place, split: str = "test") -> float:
        """Over seeds."""
        return statistics.fmean(self._values[split][place].values())

    def fewest(self, arm: str, goal: Place, seeds: Iterable[int]) -> int | None:
        """The fewest steps of an arm whose mean over some seeds is no less than the goal's."""
        for steps in self.budgets[arm]:
            found, wanted = self._values["test"][arm, steps], self._values["test"][goal]
            if sum(found[seed] for seed in seeds) >= sum(wanted[seed] for seed in seeds):
                return steps
        return None

    def verdict(self, claim: Claim) -> Verdict:
        """The claim beside its differences, at the seeds that all its arms have.

        Raises:
          KeyError: an arm has no result.
          ValueError: the arms have no seed in common.
        """
        plus, minus = (
            [self._values["test"][p] for p in side] for side in (claim.plus, claim.minus)
        )
        seeds = sorted(set.intersection(*(set(values) for values in (*plus, *minus))))
        if not seeds:
            raise ValueError(f"no seed has all of {claim.plus + claim.minus}")
        differences = tuple(
            sum(values[seed] for values in plus) - sum(values[seed] for values in minus)
            for seed in seeds
        )
        mean = statistics.fmean(differences)
        std = statistics.stdev(differences) if len(seeds) > 1 else None
        formula = self._formula(claim)
        return Verdict(claim.text, formula, differences, mean, student(mean, std, len(seeds)))

    def _formula(self, claim: Claim) -> str:
        plus, minus = ([self._words(place) for place in side] for side in (claim.plus, claim.minus))
        if len(plus) == 1:
            return f"{plus[0]} - {minus[0]}"
        return f"({plus[0]} - {minus[0]}) - ({minus[1]} - {plus[1]})"

    def _words(self, place: Place) -> str:
        arm, steps = place
        return f"{arm} after {steps:,}" if len(self.budgets[arm]) > 1 else arm


def judge(analysis: str, rows: Iterable[ResultRow], evaluation: str) -> list[Verdict]:
    """The paper's claims that an analysis tests, one verdict each.

    Claims whose arms have no result are left out.

    Args:
      analysis: one of `config.ANALYSES`.
      rows: of one study, all of it finished: the longest budgets are those of the rows.
      evaluation: which one to test them by.
    """
    results = Results(rows, evaluation)
    return [
        results.verdict(claim)
        for claim in _CLAIMS[analysis](results.budgets)
        if all(arm in results.budgets for arm, _ in claim.plus + claim.minus)
    ]


def reached(rows: Iterable[ResultRow], evaluation: str) -> list[Reached]:
    """The steps that T and B+T need to reach T's best, B+T's best and the base (paper, 4.1).

    Their best is the number of steps that is best on validation; all else is test. Needs a study
    that is finished: every arm at every seed.
    """
    results = Results(rows, evaluation)
    budgets = results.budgets

    def best(arm: str) -> Place:
        return arm, max(budgets[arm], key=lambda steps: results.mean((arm, steps), "val"))

    goals = [best(arm) for arm in ("T", "B+T", "B") if arm in budgets]
    found = []
    for goal in goals:
        for arm in ("T", "B+T"):
            if arm not in budgets:
                continue
            steps = results.fewest(arm, goal, results.seeds)
            of_seeds = tuple(results.fewest(arm, goal, [seed]) for seed in results.seeds)
            longest = budgets[arm][-1]
            claim = Claim("", ((arm, steps or longest),), (goal,))
            verdict = results.verdict(claim)
            found.append(Reached(goal, arm, steps, of_seeds, longest, verdict))
    return found


def _longest(arm: str, budgets: Budgets) -> Place:
    return arm, budgets.get(arm, (0,))[-1]


def _ahead(text: str, one: str, other: str, budgets: Budgets) -> Claim:
    """Two arms at their largest numbers of steps."""
    return Claim(text, (_longest(one, budgets),), (_longest(other, budgets),))


def _loses_less(
    text: str, arms: tuple[str, str], weakest: str, full: str, budgets: Budgets
) -> Claim:
    """From the full variant to the weakest one, the first arm loses less than the second."""
    (weak, whole), (other_weak, other_whole) = (
        (_longest(f"{arm}@{weakest}", budgets), _longest(f"{arm}@{full}", budgets)) for arm in arms
    )
    return Claim(text, (weak, other_whole), (whole, other_weak))


def _variants(arm: str, pattern: str, budgets: Budgets) -> list[str]:
    """Those of an arm that have the pattern, by its number."""
    found = {}
    for name in budgets:
        if match := re.fullmatch(re.escape(f"{arm}@") + pattern, name):
            found[float(match[1])] = name.partition("@")[2]
    return [found[number] for number in sorted(found)]


def _separability(budgets: Budgets) -> Iterator[Claim]:
    scratch, hpt = budgets.get("T", ()), budgets.get("B+T", ())
    for steps in sorted({*scratch} & {*hpt}):
        text = "At equal steps on the target, HPT is ahead of pretraining from scratch"
        yield Claim(text, (("B+T", steps),), (("T", steps),))
    if scratch[-1:] != hpt[-1:]:
        text = "HPT is ahead of the longest pretraining from scratch"
        yield _ahead(text, "B+T", "T", budgets)
    yield _ahead("Pretraining on the target adds to the base", "B+T", "B", budgets)
    text = "Batch norm alone, pretrained on the target, adds to the base"
    yield _ahead(text, "HPT-BN", "B", budgets)
    alone = budgets.get("HPT-BN", (0,))[-1]
    if alone in hpt:
        text = "Pretraining all weights adds to batch norm alone"
        yield Claim(text, (("B+T", alone),), (("HPT-BN", alone),))


def _semi_supervised(budgets: Budgets) -> Iterator[Claim]:
    yield _ahead("With few labels, HPT is ahead of pretraining from scratch", "B+T", "T", budgets)
    yield _ahead("With few labels, HPT is ahead of the base", "B+T", "B", budgets)


def _sequential(budgets: Budgets) -> Iterator[Claim]:
    yield _ahead("A source between base and target adds", "B+S+T", "B+T", budgets)
    yield _ahead("The base before source and target adds", "B+S+T", "S+T", budgets)
    yield _ahead("The target after base and source adds", "B+S+T", "B+S", budgets)
    yield _ahead("The whole chain is ahead of the target alone", "B+S+T", "T", budgets)
    yield _ahead("The whole chain is ahead of the base alone", "B+S+T", "B", budgets)
    text = "The whole chain is ahead of the target alone, given all steps of the chain"
    yield _ahead(text, "B+S+T", ALL_STEPS, budgets)


def _augmentation(budgets: Budgets) -> Iterator[Claim]:
    for policy in ROBUSTNESS:
        text = "Whatever the augmentation, HPT is ahead of pretraining from scratch"
        yield _ahead(text, f"B+T@{policy}", f"T@{policy}", budgets)
    text = "With fewer augmentations HPT loses less than pretraining from scratch"
    yield _loses_less(text, ("B+T", "T"), ROBUSTNESS[-1], ROBUSTNESS[0], budgets)


def _data(budgets: Budgets) -> Iterator[Claim]:
    shares = _variants("B+T", r"(\d+(?:\.\d+)?)%", budgets)
    for share in shares:
        text = "However few the target's images, HPT is ahead of pretraining from scratch"
        yield _ahead(text, f"B+T@{share}", f"T@{share}", budgets)
    if len(shares) > 1:
        text = "With few images HPT loses less than pretraining from scratch"
        yield _loses_less(text, ("B+T", "T"), shares[0], shares[-1], budgets)
        text = "With the fewest images batch norm alone is ahead of all weights"
        yield _ahead(text, f"HPT-BN@{shares[0]}", f"B+T@{shares[0]}", budgets)


def _base_quality(budgets: Budgets) -> Iterator[Claim]:
    bases = _variants("B", r"base_(\d+)", budgets)
    for base in bases:
        text = "Whatever the base, HPT is ahead of it"
        yield _ahead(text, f"B+T@{base}", f"B@{base}", budgets)
    if len(bases) > 1:
        text = "With a poorer base HPT loses less than the base itself"
        yield _loses_less(text, ("B+T", "B"), bases[0], bases[-1], budgets)


_CLAIMS = {
    "separability": _separability,
    "semi_supervised": _semi_supervised,
    "sequential": _sequential,
    "augmentation_robustness": _augmentation,
    "data_robustness": _data,
    "base_quality": _base_quality,
}
