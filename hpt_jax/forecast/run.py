"""Row by row: each topology and batch that is asked for, told and kept as it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpt_jax import estimate, plan
from hpt_jax.errors import UserError, nearest
from hpt_jax.forecast import measure, program
from hpt_jax.forecast.rows import Row, Table, Work, largest, sentences
from hpt_jax.telemetry.display import Display


def chosen_stage(stages: Sequence[plan.Stage], name: str | None) -> plan.Stage:
    """The first stage that trains, of a name where one is given.

    Raises:
      UserError: there is none.
    """
    training = [stage for stage in stages if stage.trains]
    if not training:
        expected = "a config with a stage that trains"
        raise UserError("--config", None, expected, "Its stages are weights alone.")
    found = [stage for stage in training if name in (None, stage.name)]
    if not found:
        fix = nearest(str(name), {stage.name for stage in training})
        raise UserError("--stage", name, "a stage of the config that trains", fix)
    return found[0]


def work_of(stage: plan.Stage, stages: Sequence[plan.Stage]) -> Work:
    """What a config asks for, in images of one of its stages."""
    own, all_flops = estimate.stage_flops(stage), sum(map(estimate.stage_flops, stages))
    training = sum(one.trains for one in stages)
    return Work(stage.steps * stage.config.batch_size, all_flops / own, training)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How rows are made.

    Attributes:
      stage: what is compiled.
      work: what the config asks for.
      chips: topology -> how many it has.
      table: where rows are kept.
      minutes: that one compile may take.
      display: where rows are told.
    """

    stage: plan.Stage
    work: Work
    chips: dict[str, int]
    table: Table
    minutes: float
    display: Display

    def rows(self, images_per_chip: Sequence[int], search: bool) -> list[Row]:
        """Makes all rows, and tells which batch is the largest that fits.

        Args:
          images_per_chip: the batches.
          search: whether to go on from them to the largest.

        Raises:
          UserError: a batch cannot be cut into groups; nothing was compiled yet.
        """
        for count in self.chips.values():
            for images in images_per_chip:
                program.at_batch(self.stage.config, images, count)
        made: list[Row] = []
        for topology in self.chips:
            own = [self.row(topology, images) for images in images_per_chip]
            made += own + (self._searched(topology, own) if search else [])
        for line in largest(made):
            self.display.outcome(line)
        return made

    def row(self, topology: str, images_per_chip: int) -> Row:
        """Compiles for one topology at one batch, unless it is known; tells and keeps the row."""
        chips = self.chips[topology]
        stage = program.at_batch(self.stage.config, images_per_chip, chips)
        groups, dtype = stage.model.bn_groups, stage.model.dtype
        row = Row(self.stage.name, topology, images_per_chip, chips, groups, dtype)
        known = self.table.measured
        with self.display.working(f"compiling for {topology} at {images_per_chip} images a chip"):
            question = measure.Question(stage, topology, frozenset(known))
            answer = measure.ask(question, self.minutes)
        if (key := answer.get("key", "")) in known:  # perhaps as a step of another stage
            row = dataclasses.replace(known[key], stage=row.stage)
        else:
            row = dataclasses.replace(row, **answer)
        self.table.add(row, self.work)
        for line in sentences(row, self.work):
            self.display.outcome(line)
        return row

    def _searched(self, topology: str, found: Sequence[Row]) -> list[Row]:
        """Twice the largest batch that fits, until one does not; or half the smallest."""
        tried = {row.images_per_chip: row for row in found}
        fitting = [images for images, row in tried.items() if row.fits]
        made: list[Row] = []
        images = max(fitting, default=min(tried))
        most = self.stage.config.moco.queue_size // self.chips[topology]
        while True:
            images = 2 * images if fitting else images // 2
            if images in tried or not 2 <= images <= most:
                return made
            made.append(self.row(topology, images))
            if made[-1].fits != bool(fitting):
                return made
