"""The attackers. Importing this package registers them; add a line for each new file."""

from pipeline.adversary.attackers.adaptive import Adaptive
from pipeline.adversary.attackers.base import ATTACKERS
from pipeline.adversary.attackers.best_of_n import BestOfN
from pipeline.adversary.attackers.pair import Pair
from pipeline.adversary.attackers.prefill import Prefill

__all__ = ["ATTACKERS", "Adaptive", "BestOfN", "Pair", "Prefill"]
