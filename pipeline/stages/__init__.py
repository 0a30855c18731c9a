"""The stages, in the order of the chain. To add one, write a class and add it here. Those that repeat adjoin."""

from pipeline.core.stage import Stage
from pipeline.stages.adversary import Adversary
from pipeline.stages.align import Align
from pipeline.stages.attack import Attack
from pipeline.stages.critique import Critique
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.explain import Explain
from pipeline.stages.guard import Guard
from pipeline.stages.preferences import Preferences
from pipeline.stages.prompts import Prompts
from pipeline.stages.report import Report
from pipeline.stages.reward import Reward
from pipeline.stages.sft import Sft
from pipeline.stages.write import Write

STAGES: tuple[Stage, ...] = (
    Write(),
    Prompts(),
    Critique(),
    Sft(),
    Adversary(),
    Preferences(),
    Reward(),
    Align(),
    Guard(),
    Evaluate(),
    Attack(),
    Explain(),
    Report(),
)
