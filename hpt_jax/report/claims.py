"""Whether the paper's claims hold in a study: differences between its arms, seed by seed.

Arms of one seed share what they have in common, the base above all, and are tested on the same
images, so that their differences scatter less than the arms do. They know nothing of other test
images: intervals are over seeds alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hpt_jax.augment.policies import ROBUSTNESS
from hpt_jax.report.tables import ResultRow, Summary, interval

# T given as many steps as the whole chain takes; another study may have run it.
ALL_STEPS = "T@all_steps"

Place = tuple[str, int]  # an arm, and its steps on the target


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
      differences: of each seed, ascending; fractions in [-1, 1], or [-2, 2] of two differences.
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
      longest: the largest of its budgets.
      verdict: of the arm at `steps`, or at `longest`, less the goal.
    """

    goal: Place
    arm: str
    steps: int | None
    longest: int
    verdict: Verdict


class Results:
    """The test results of one evaluation in one study.

    Args:
      rows: of one study; other evaluations are passed over.
      evaluation: which.

    Attributes:
      budgets: arm -> its numbers of steps on the target, ascending.
    """

    def __init__(self, rows: Iterable[ResultRow], evaluation: str):
        self._values: dict[str, dict[Place, dict[int, float]]] = {"val": {}, "test": {}}
        budgets: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            if row.evaluation == evaluation:
                place = (row.arm, row.pretrain_steps)
                self._values[row.split].setdefault(place, {})[row.seed] = row.value
                budgets[row.arm].add(row.pretrain_steps)
        self.budgets: Mapping[str, list[int]] = {
            arm: sorted(found) for arm, found in budgets.items()
        }

    def mean(self, place: Place, split: str = "test") -> float:
        """Over seeds."""
        return statistics.fmean(self._values[split][place].values())

    def verdict(self, claim: Claim) -> Verdict:
        """The claim beside its differences; an arm of one seed, a public base, counts for each.

        Raises:
          KeyError: an arm has no result.
          ValueError: the arms have no seed in common.
        """
        signed = [(1, place) for place in claim.plus] + [(-1, place) for place in claim.minus]
        found = [(sign, self._values["test"][place]) for sign, place in signed]
        several = [set(values) for _, values in found if len(values) > 1]
        seeds = sorted(set.intersection(*several)) if several else [min(found[0][1])]
        if not seeds:
            raise ValueError(f"no seed has all of {claim.plus + claim.minus}")
        differences = tuple(
            sum(sign * (v[seed] if len(v) > 1 else next(iter(v.values()))) for sign, v in found)
            for seed in seeds
        )
        spread = statistics.stdev(differences) if len(seeds) > 1 else None
        mean = statistics.fmean(differences)
        of_mean = interval(Summary("", "", "", 0, "", "", len(seeds), mean, spread))
        return Verdict(claim.text, self._formula(claim), differences, mean, of_mean)

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

    Claims whose arms have no result yet are left out.

    Args:
      analysis: one of `config.ANALYSES`.
      rows: of one study.
      evaluation: which one to test them by.
    """
    results = Results(rows, evaluation)
    longest = {arm: budgets[-1] for arm, budgets in results.budgets.items()}
    return [
        results.verdict(claim)
        for claim in _CLAIMS[analysis](results.budgets, longest)
        if all(arm in longest for arm, _ in claim.plus + claim.minus)
    ]


def reached(rows: Iterable[ResultRow], evaluation: str) -> list[Reached]:
    """The steps on the target that T and B+T need to reach T's best, and the base (paper, 4.1).

    T's best is the number of steps that is best on validation; all else is test.
    """
    results = Results(rows, evaluation)
    budgets = results.budgets
    goals: list[Place] = []
    if "T" in budgets:
        by_val = [(results.mean(("T", steps), "val"), -steps) for steps in budgets["T"]]
        goals.append(("T", -max(by_val)[1]))
    if "B" in budgets:
        goals.append(("B", 0))
    found = []
    for goal in goals:
        for arm in ("T", "B+T"):
            if arm not in budgets:
                continue
            enough = [s for s in budgets[arm] if results.mean((arm, s)) >= results.mean(goal)]
            steps = enough[0] if enough else None
            here = (arm, budgets[arm][-1] if steps is None else steps)
            claim = Claim("", (here,), (goal,))
            found.append(Reached(goal, arm, steps, budgets[arm][-1], results.verdict(claim)))
    return found


Budgets = Mapping[str, Sequence[int]]
Longest = Mapping[str, int]


def _ahead(text: str, one: str, other: str, longest: Longest) -> Claim:
    """Two arms at their largest numbers of steps."""
    return Claim(text, ((one, longest.get(one, 0)),), ((other, longest.get(other, 0)),))


def _loses_less(text: str, one: tuple[str, str], other: tuple[str, str], longest: Longest) -> Claim:
    """From the second to the first of `one`, compared with the same of `other`."""
    places = [(arm, longest.get(arm, 0)) for arm in (*one, *other)]
    return Claim(text, (places[0], places[3]), (places[1], places[2]))


def _separability(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    for steps in sorted({*budgets.get("T", ())} & {*budgets.get("B+T", ())}):
        text = "At equal steps on the target, HPT is ahead of pretraining from scratch"
        yield Claim(text, (("B+T", steps),), (("T", steps),))
    text = "HPT is ahead of the longest pretraining from scratch"
    yield _ahead(text, "B+T", "T", longest)
    yield _ahead("Pretraining on the target adds to the base", "B+T", "B", longest)
    yield _ahead(
        "Batch norm alone, pretrained on the target, adds to the base", "HPT-BN", "B", longest
    )
    alone = longest.get("HPT-BN", 0)
    if alone in budgets.get("B+T", ()):
        text = "Pretraining all weights adds to batch norm alone"
        yield Claim(text, (("B+T", alone),), (("HPT-BN", alone),))


def _semi_supervised(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    yield _ahead("With few labels, HPT is ahead of pretraining from scratch", "B+T", "T", longest)
    yield _ahead("With few labels, HPT is ahead of the base", "B+T", "B", longest)


def _sequential(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    yield _ahead("A source between base and target adds", "B+S+T", "B+T", longest)
    yield _ahead("The base before source and target adds", "B+S+T", "S+T", longest)
    yield _ahead("The target after base and source adds", "B+S+T", "B+S", longest)
    yield _ahead("The whole chain is ahead of the target alone", "B+S+T", "T", longest)
    yield _ahead("The whole chain is ahead of the base alone", "B+S+T", "B", longest)
    text = "The whole chain is ahead of the target alone, given all steps of the chain"
    yield _ahead(text, "B+S+T", ALL_STEPS, longest)


def _augmentation(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    full, weakest = ROBUSTNESS[0], ROBUSTNESS[-1]
    for policy in ROBUSTNESS:
        text = "Whatever the augmentation, HPT is ahead of pretraining from scratch"
        yield _ahead(text, f"B+T@{policy}", f"T@{policy}", longest)
    text = "With fewer augmentations HPT loses less than pretraining from scratch"
    pairs = [(f"{arm}@{weakest}", f"{arm}@{full}") for arm in ("B+T", "T")]
    yield _loses_less(text, pairs[0], pairs[1], longest)


def _data(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    shares = [arm.partition("@")[2] for arm in budgets if arm.startswith("B+T@")]
    shares.sort(key=lambda share: float(share.removesuffix("%")))
    for share in shares:
        text = "However few the target's images, HPT is ahead of pretraining from scratch"
        yield _ahead(text, f"B+T@{share}", f"T@{share}", longest)
    if len(shares) > 1:
        text = "With few images HPT loses less than pretraining from scratch"
        pairs = [(f"{arm}@{shares[0]}", f"{arm}@{shares[-1]}") for arm in ("B+T", "T")]
        yield _loses_less(text, pairs[0], pairs[1], longest)
        text = "With the fewest images batch norm alone is ahead of all weights"
        yield _ahead(text, f"HPT-BN@{shares[0]}", f"B+T@{shares[0]}", longest)


def _base_quality(budgets: Budgets, longest: Longest) -> Iterator[Claim]:
    bases = [arm.partition("@")[2] for arm in budgets if arm.startswith("B@")]
    bases.sort(key=lambda base: int(base.removeprefix("base_")))
    for base in bases:
        text = "Whatever the base, HPT is ahead of it"
        yield _ahead(text, f"B+T@{base}", f"B@{base}", longest)
    if len(bases) > 1:
        text = "With a poorer base HPT loses less than the base itself"
        pairs = [(f"{arm}@{bases[0]}", f"{arm}@{bases[-1]}") for arm in ("B+T", "B")]
        yield _loses_less(text, pairs[0], pairs[1], longest)


_CLAIMS = {
    "separability": _separability,
    "semi_supervised": _semi_supervised,
    "sequential": _sequential,
    "augmentation_robustness": _augmentation,
    "data_robustness": _data,
    "base_quality": _base_quality,
}
