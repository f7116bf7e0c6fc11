"""The factor that keeps small fp16 gradients from vanishing: halved when they overflow, doubled when they have not."""

from typing import Dict

from gm.errors import UserError

FLAG = "--LossScale."
SMALLEST = 1.0
LARGEST = 2.0**24


class LossScale:
    """A dynamic loss scale, as MindSpore's `DynamicLossScaler`, on the host: its state is plain numbers.

    Args:
        loss_scale_value: to start with.
        scale_factor: what it is divided by after an overflow, and multiplied by after a window without.
        scale_window: updates in a window.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, loss_scale_value: float = 65536.0, scale_factor: float = 2.0, scale_window: int = 1000) -> None:
        if not SMALLEST <= loss_scale_value <= LARGEST:
            raise UserError(f"{FLAG}loss_scale_value is {loss_scale_value:g}; it is 1 to {LARGEST:g}")
        if not scale_factor > 1:
            raise UserError(f"{FLAG}scale_factor is {scale_factor:g}; it is above 1")
        if scale_window < 1:
            raise UserError(f"{FLAG}scale_window is {scale_window}; it is 1 or more")
        self.value, self.factor, self.window = float(loss_scale_value), float(scale_factor), scale_window
        self.finite_updates = 0  # in a row

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller scale may cure gradients that are not finite."""
        return self.value > SMALLEST

    def adjust(self, finite: bool) -> None:
        """Takes note of an update's gradients."""
        if not finite:
            self.value, self.finite_updates = max(self.value / self.factor, SMALLEST), 0
            return
        self.finite_updates += 1
        if self.finite_updates >= self.window:
            self.value, self.finite_updates = min(self.value * self.factor, LARGEST), 0

    def state(self) -> Dict[str, float]:
        """What :meth:`restore` takes."""
        return {"value": self.value, "finite_updates": self.finite_updates}

    def restore(self, state: Dict[str, float]) -> None:
        """Goes on where another one was."""
        self.value, self.finite_updates = float(state["value"]), int(state["finite_updates"])


class NoLossScale(LossScale):
    """fp32 needs none: always 1."""

    def __init__(self) -> None:
        super().__init__(loss_scale_value=SMALLEST)

    def adjust(self, finite: bool) -> None:
        """Nothing changes."""
