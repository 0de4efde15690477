"""Everything that a plugin needs, in one import.

The contracts (what to write), the mechanisms (what to call), and the two calls that do the work from
Python: `load_victim` and `evaluate`.
"""

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.evaluate import Evaluation
from robustspike.bench.attack.evaluate import evaluate
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.fitting import needs_of
from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.certify.base import certify
from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import API_VERSION
from robustspike.bench.contract.specs import BLACK_BOX_STAGE
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import AttackSpec
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import DefenseSpec
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import Victim
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.data.arrays import ArrayData
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import as_split
from robustspike.bench.data.base import stratified
from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import bin_events
from robustspike.bench.data.events.events import recording
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.spike_camera import read_spike_dat
from robustspike.bench.data.events.spike_camera import read_spike_npz
from robustspike.bench.data.events.spike_camera import spike_frames
from robustspike.bench.errors import AccessDenied
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import BudgetExceeded
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import EstimatorRefused
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.image_quality import gmsd
from robustspike.bench.numbers.image_quality import haarpsi
from robustspike.bench.numbers.image_quality import learned
from robustspike.bench.numbers.image_quality import luma
from robustspike.bench.numbers.image_quality import psnr
from robustspike.bench.numbers.image_quality import ssim
from robustspike.bench.numbers.losses import LOSSES
from robustspike.bench.numbers.losses import Loss
from robustspike.bench.numbers.losses import cross_entropy
from robustspike.bench.numbers.losses import dlr
from robustspike.bench.numbers.losses import margin
from robustspike.bench.numbers.losses import strongest_other
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.numbers.rng import stable_hash
from robustspike.bench.numbers.stats import spearman
from robustspike.bench.snn.estimators import BpttEstimator
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.snn.estimators import Native
from robustspike.bench.snn.estimators import SurrogateEstimator
from robustspike.bench.snn.legacy import legacy_spikingjelly
from robustspike.bench.snn.neurons import DeferredRule
from robustspike.bench.snn.neurons import FunctionRule
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SequenceRule
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.snn.neurons import replace_gradient
from robustspike.bench.snn.neurons import reset
from robustspike.bench.snn.neurons import supplied_with
from robustspike.bench.threats.geometry import DiscreteGeometry
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.threats.retiming import from_lines
from robustspike.bench.threats.retiming import to_lines
from robustspike.bench.training.contract import Defense
from robustspike.bench.training.defense import Combined
from robustspike.bench.training.defense import DefenseBase
from robustspike.bench.training.fit import Progress
from robustspike.bench.training.fit import Report
from robustspike.bench.training.fit import Schedule
from robustspike.bench.training.fit import Step
from robustspike.bench.training.fit import Terms
from robustspike.bench.training.fit import accuracy
from robustspike.bench.training.fit import fit
from robustspike.bench.training.fit import initialise
from robustspike.bench.training.network import NetworkRecipe
from robustspike.bench.training.network import build_network
from robustspike.bench.training.network import made_network
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.adapt import adapt
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.energy import EnergyCost
from robustspike.bench.victim.energy import SynapticCounts
from robustspike.bench.victim.energy import count_synops
from robustspike.bench.victim.joint import JointVictim
from robustspike.bench.victim.joint import joint
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import wrap
from robustspike.bench.victim.training_energy import TrainingOperations
from robustspike.bench.victim.training_energy import training_operations

__all__ = [
    "API_VERSION",
    "BLACK_BOX_STAGE",
    "EVENT",
    "LOSSES",
    "Access",
    "AccessDenied",
    "ArrayData",
    "ArtefactError",
    "Attack",
    "AttackSpec",
    "BenchError",
    "BpttEstimator",
    "Budget",
    "BudgetExceeded",
    "Certified",
    "Combined",
    "ConfigError",
    "ContractError",
    "Dataset",
    "Defense",
    "DefenseBase",
    "DefenseSpec",
    "DeferredRule",
    "DiscreteGeometry",
    "Domain",
    "EnergyCost",
    "EstimatorRefused",
    "Evaluation",
    "EventLists",
    "FunctionRule",
    "Geometry",
    "Goal",
    "GradientEstimator",
    "JointVictim",
    "Loss",
    "LossGrad",
    "Memory",
    "ModuleVictim",
    "Native",
    "NetworkRecipe",
    "Neuron",
    "Oracle",
    "Progress",
    "Recording",
    "Report",
    "RowStreams",
    "Schedule",
    "Sensor",
    "SequenceRule",
    "ShardResult",
    "SpikeRule",
    "Split",
    "SplitName",
    "Status",
    "Step",
    "SurrogateEstimator",
    "SynapticCounts",
    "Task",
    "Terms",
    "ThreatModel",
    "ThreatViolation",
    "TrainingOperations",
    "Victim",
    "VictimFailed",
    "VictimRecipe",
    "VictimSpec",
    "accuracy",
    "adapt",
    "as_split",
    "bin_events",
    "build_network",
    "certify",
    "check_victim",
    "count_synops",
    "cross_entropy",
    "dlr",
    "evaluate",
    "evaluate_shard",
    "find_neurons",
    "fingerprint_inputs",
    "fit",
    "from_lines",
    "generator",
    "gmsd",
    "haarpsi",
    "initialise",
    "joint",
    "learned",
    "legacy_spikingjelly",
    "load_victim",
    "luma",
    "made_network",
    "margin",
    "needs_of",
    "parse_call",
    "psnr",
    "read_spike_dat",
    "read_spike_npz",
    "recording",
    "registry",
    "replace_gradient",
    "reset",
    "spearman",
    "spike_frames",
    "ssim",
    "stable_hash",
    "stratified",
    "strongest_other",
    "supplied_with",
    "to_lines",
    "training_operations",
    "wrap",
]
