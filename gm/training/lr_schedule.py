"""The learning rate over a run: warm-up, then constant, cosine or polynomial."""

import math

from gm.errors import UserError

FLAG = "--train.scheduler."
CONSTANT, COSINE, POLYNOMIAL = NAMES = ("constant", "cosine_decay", "polynomial_decay")


class LearningRate:
    """Rises linearly to `lr` in the first `warmup_steps` updates, then falls to `end_lr` at the last one.

    Args:
        name: constant (stays at lr), cosine_decay (half a cosine) or polynomial_decay.
        lr: the highest rate.
        end_lr: the last one of the decaying schedules; constant has none but lr.
        warmup_steps: updates until lr is reached.
        power: of polynomial_decay; 1 is a straight line.
        total_steps: updates in the whole run.

    Raises:
        UserError: an unknown name, or a value out of its range.
    """

    def __init__(self, name: str, lr: float, end_lr: float, warmup_steps: int, power: float, total_steps: int) -> None:
        if name not in NAMES:
            raise UserError(f"{FLAG}name: {name!r} is none of {', '.join(NAMES)}")
        if not 0 < lr < math.inf:
            raise UserError(f"{FLAG}lr is {lr:g}; it is above 0")
        if not 0 <= end_lr <= lr:
            raise UserError(f"{FLAG}end_lr is {end_lr:g}; it is 0 to lr, {lr:g}")
        if warmup_steps < 0:
            raise UserError(f"{FLAG}warmup_steps is {warmup_steps}; it is 0 or more")
        if not 0 < power < math.inf:
            raise UserError(f"{FLAG}power is {power:g}; it is above 0")
        self.name, self.lr, self.end_lr, self.power = name, lr, end_lr, power
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def __call__(self, step: int) -> float:
        """The rate of an update; the first is step 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.name == CONSTANT:
            return self.lr
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - 1 - self.warmup_steps))
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.name == COSINE else (1 - progress) ** self.power
        return self.end_lr + (self.lr - self.end_lr) * fall
