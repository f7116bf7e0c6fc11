"""What the trainer offers to those who watch it: callbacks, and the view of the trainer that they get."""

from pathlib import Path
from typing import ContextManager, Mapping, Protocol

from gm.model import DiffusionEngine


class TrainerView(Protocol):
    """What a callback may use of the trainer.

    Attributes:
        step: optimizer steps done.
        total_steps: of the whole run.
        output_dir: the run's folder.
        engine: its `network` stage holds the network that is trained; the other stages load on use and are released.
    """

    step: int
    total_steps: int
    output_dir: Path
    engine: DiffusionEngine

    def averaged(self) -> ContextManager[None]:
        """Inside the block the network has the averaged (EMA) weights, or its own where there is no average."""


class Callback:
    """Watches a run; does nothing by default. Called in the process of rank 0 only."""

    def on_start(self, trainer: TrainerView) -> None:
        """Before the first step; `trainer.step` is where a resumed run goes on."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each optimizer step.

        Args:
            step: optimizer steps done, from 1.
            metrics: `loss`; `loss_sigma/LOW-HIGH` for each σ bucket that had a clip; `lr`; `grad_norm` (before
                clipping); `loss_scale`; `skipped_updates` (so far); `epoch` (a fraction); `samples_per_second`;
                `memory_gb` (this process's peak).
        """

    def on_validation(self, step: int, trainer: TrainerView) -> None:
        """Every `validate_every` steps; samples with `trainer.engine` inside `with trainer.averaged():`."""

    def on_end(self, step: int) -> None:
        """After the last step, or when the run stops early."""
