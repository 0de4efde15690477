"""What a victim needs, one's own network or a recipe that trains one."""

from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.snn.legacy import legacy_spikingjelly
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.snn.neurons import reset
from robustspike.bench.training.network import NetworkRecipe
from robustspike.bench.training.network import RegressorRecipe
from robustspike.bench.training.network import build_network
from robustspike.bench.training.network import made_network
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.adapt import adapt
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.joint import joint
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import wrap

__all__ = [
    "ModuleVictim",
    "NetworkRecipe",
    "RegressorRecipe",
    "VictimRecipe",
    "VictimSpec",
    "adapt",
    "build_network",
    "check_victim",
    "find_neurons",
    "find_weights",
    "fingerprint_inputs",
    "joint",
    "legacy_spikingjelly",
    "load_victim",
    "made_network",
    "reset",
    "wrap",
]
