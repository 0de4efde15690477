"""Everything that a plugin needs, in one import.

The contracts (what to write), the mechanisms (what to call), and the two calls that do the work from
Python: `load_victim` and `evaluate`.
"""

from robustspike.bench.adapters import adapt
from robustspike.bench.certify import Certified
from robustspike.bench.certify import certify
from robustspike.bench.contracts import API_VERSION
from robustspike.bench.contracts import BLACK_BOX_STAGE
from robustspike.bench.contracts import Access
from robustspike.bench.contracts import Attack
from robustspike.bench.contracts import AttackSpec
from robustspike.bench.contracts import Budget
from robustspike.bench.contracts import Defense
from robustspike.bench.contracts import DefenseSpec
from robustspike.bench.contracts import Domain
from robustspike.bench.contracts import Goal
from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.contracts import ThreatModel
from robustspike.bench.contracts import Victim
from robustspike.bench.contracts import VictimSpec
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import as_split
from robustspike.bench.data.base import stratified
from robustspike.bench.data.events import EVENT
from robustspike.bench.data.events import EventLists
from robustspike.bench.data.events import Recording
from robustspike.bench.data.events import bin_events
from robustspike.bench.data.events import recording
from robustspike.bench.data.sensor import Sensor
from robustspike.bench.data.spike_camera import read_spike_dat
from robustspike.bench.data.spike_camera import read_spike_npz
from robustspike.bench.data.spike_camera import spike_frames
from robustspike.bench.defense import Combined
from robustspike.bench.defense import DefenseBase
from robustspike.bench.energy import EnergyCost
from robustspike.bench.energy import SynapticCounts
from robustspike.bench.energy import TrainingOperations
from robustspike.bench.energy import count_synops
from robustspike.bench.energy import training_operations
from robustspike.bench.errors import AccessDenied
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import BudgetExceeded
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.evaluate import Evaluation
from robustspike.bench.evaluate import evaluate
from robustspike.bench.evaluate import evaluate_shard
from robustspike.bench.fullref import gmsd
from robustspike.bench.fullref import haarpsi
from robustspike.bench.fullref import learned
from robustspike.bench.fullref import luma
from robustspike.bench.fullref import psnr
from robustspike.bench.fullref import ssim
from robustspike.bench.geometry import DiscreteGeometry
from robustspike.bench.geometry import Geometry
from robustspike.bench.gradients import BpttEstimator
from robustspike.bench.gradients import GradientEstimator
from robustspike.bench.gradients import LossGrad
from robustspike.bench.gradients import Memory
from robustspike.bench.gradients import Native
from robustspike.bench.gradients import SurrogateEstimator
from robustspike.bench.joint import JointVictim
from robustspike.bench.joint import joint
from robustspike.bench.losses import LOSSES
from robustspike.bench.losses import Loss
from robustspike.bench.losses import cross_entropy
from robustspike.bench.losses import dlr
from robustspike.bench.losses import margin
from robustspike.bench.losses import strongest_other
from robustspike.bench.neurons import DeferredRule
from robustspike.bench.neurons import FunctionRule
from robustspike.bench.neurons import Neuron
from robustspike.bench.neurons import SequenceRule
from robustspike.bench.neurons import SpikeRule
from robustspike.bench.neurons import find_neurons
from robustspike.bench.neurons import replace_gradient
from robustspike.bench.neurons import reset
from robustspike.bench.neurons import supplied_with
from robustspike.bench.oracle import Oracle
from robustspike.bench.recipes import VictimRecipe
from robustspike.bench.recipes import load_victim
from robustspike.bench.registry import parse_call
from robustspike.bench.registry import registry
from robustspike.bench.retiming import from_lines
from robustspike.bench.retiming import to_lines
from robustspike.bench.rng import RowStreams
from robustspike.bench.rng import generator
from robustspike.bench.rng import stable_hash
from robustspike.bench.stats import spearman
from robustspike.bench.training import Progress
from robustspike.bench.training import Report
from robustspike.bench.training import Schedule
from robustspike.bench.training import Step
from robustspike.bench.training import Terms
from robustspike.bench.training import accuracy
from robustspike.bench.training import fit
from robustspike.bench.training import initialise
from robustspike.bench.verdicts import ShardResult
from robustspike.bench.victim import ModuleVictim
from robustspike.bench.victim import check_victim
from robustspike.bench.victim import fingerprint_inputs
from robustspike.bench.victim import wrap

__all__ = [
    "API_VERSION",
    "BLACK_BOX_STAGE",
    "EVENT",
    "LOSSES",
    "Access",
    "AccessDenied",
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
    "VictimRecipe",
    "VictimSpec",
    "accuracy",
    "adapt",
    "as_split",
    "bin_events",
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
    "load_victim",
    "luma",
    "margin",
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
