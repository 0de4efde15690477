"""What measuring from Python needs: the two calls that do the work, what they return, what they raise."""

from robustspike.bench.attack.evaluate import Evaluation
from robustspike.bench.attack.evaluate import evaluate
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.contract.specs import Status
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.stats import spearman
from robustspike.bench.victim.energy import EnergyCost
from robustspike.bench.victim.energy import count_synops

__all__ = [
    "ArtefactError",
    "BenchError",
    "ConfigError",
    "ContractError",
    "EnergyCost",
    "Evaluation",
    "ShardResult",
    "Status",
    "VictimFailed",
    "count_synops",
    "evaluate",
    "evaluate_shard",
    "spearman",
]
