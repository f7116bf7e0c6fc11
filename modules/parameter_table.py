"""The names and shapes of a configuration's parameters, without memory for their values."""

from pathlib import Path
from typing import Dict, Tuple, Union

from gm.config.factory import load_model


def expected_parameters(config: Union[str, Path], flag: str = "--config") -> Dict[str, Tuple[int, ...]]:
    """Published name -> shape of every parameter of the model that a YAML file defines."""
    return load_model(config, flag=flag).parameter_shapes()
