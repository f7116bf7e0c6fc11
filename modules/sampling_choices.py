"""The sampler of a run: the YAML's, with what the command line replaces."""

from typing import Any, Mapping, Optional, Tuple

from gm.errors import UserError
from gm.sampling.guidance import (
    ConstantGuider,
    Guider,
    LinearPredictionGuider,
    TrapezoidPredictionGuider,
    TrianglePredictionGuider,
)
from gm.sampling.samplers import (
    ConsistencySampler,
    DPMPP2MSampler,
    EulerAncestralSampler,
    EulerEDMSampler,
    HeunEDMSampler,
    Sampler,
)
from gm.sampling.schedules import AlignYourStepsDiscretization, EDMDiscretization

SVD_SIGMA_MAX = 700.0

SAMPLERS = {
    "euler": EulerEDMSampler,
    "heun": HeunEDMSampler,
    "euler_ancestral": EulerAncestralSampler,
    "dpmpp2m": DPMPP2MSampler,
    "consistency": ConsistencySampler,
}
SCHEDULES = {"karras": EDMDiscretization, "ays": AlignYourStepsDiscretization}
GUIDERS = {
    "linear": LinearPredictionGuider,
    "constant": ConstantGuider,
    "triangle": TrianglePredictionGuider,
    "trapezoid": TrapezoidPredictionGuider,
}


def choose_sampler(
    current: Sampler,
    sampler: Optional[str] = None,
    schedule: Optional[str] = None,
    guider: Optional[str] = None,
    min_cfg: Optional[float] = None,
    max_cfg: Optional[float] = None,
    sampling_steps: int = 0,
    guidance_interval: Optional[Tuple[float, float]] = None,
) -> Sampler:
    """A sampler with every part that is named replaced; the rest stays as in `current`.

    Args:
        sampler, schedule, guider: names in the tables above.
        min_cfg, max_cfg: the guidance scale's range.
        sampling_steps: 0 keeps the number of steps.
        guidance_interval: the lowest and the highest σ that is guided.

    Raises:
        UserError: an unknown name, or options that contradict each other.
    """
    kind = type(current) if sampler is None else _choose(SAMPLERS, sampler, "--SVD.sampler")
    discretization = _discretization(current.discretization, schedule)
    guide = _guider(current.guider, guider, min_cfg, max_cfg)
    if guidance_interval is not None:
        guide.interval = _interval(guidance_interval)
    steps = sampling_steps or current.num_steps
    if kind is not type(current):
        return kind(discretization, guide, steps)
    current.discretization, current.guider, current.num_steps = discretization, guide, steps
    return current


def _discretization(current: Any, schedule: Optional[str]) -> Any:
    """Karras sigmas keep the range of the YAML's, where it has one."""
    if schedule is None:
        return current
    kind = _choose(SCHEDULES, schedule, "--SVD.schedule")
    if kind is EDMDiscretization:
        return current if isinstance(current, EDMDiscretization) else kind(sigma_max=SVD_SIGMA_MAX)
    return kind()


def _guider(current: Guider, name: Optional[str], min_cfg: Optional[float], max_cfg: Optional[float]) -> Guider:
    kind = type(current) if name is None else _choose(GUIDERS, name, "--SVD.guider")
    high = current.max_scale if max_cfg is None else max_cfg
    if kind is ConstantGuider:
        return ConstantGuider(high, min_cfg)
    return kind(high, current.min_scale if min_cfg is None else min_cfg)


def _interval(sigmas: Tuple[float, float]) -> Tuple[float, float]:
    low, high = sigmas
    if not 0 <= low < high:
        raise UserError(f"--SVD.guidance_interval=[{low:g},{high:g}]: two sigmas, the second larger, none below 0")
    return low, high


def _choose(table: Mapping[str, Any], name: str, flag: str) -> Any:
    if name not in table:
        raise UserError(f"{flag}={name}: choose one of {', '.join(table)}")
    return table[name]
