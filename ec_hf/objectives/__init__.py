"""Host objectives: what an unlearning method minimises at the model's last layer, found by name."""

from ec_hf.objectives.base import Objective, Part, Progress, Setting, Step
from ec_hf.objectives.registry import available, get_objective, register

__all__ = ["Objective", "Part", "Progress", "Setting", "Step", "available", "get_objective", "register"]
