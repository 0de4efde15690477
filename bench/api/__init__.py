"""Everything that a plugin needs, in one import, in five parts: attack, defense, victim, data, measure.

The contracts (what to write), the mechanisms (what to call), and the two calls that do the work from Python:
`load_victim` and `evaluate`. Some names are used by no built-in component: they are what third parties write,
name or catch, such as budgets, errors, data sets of their own and wrapped networks.
"""

from robustspike.bench.api.attack import API_VERSION
from robustspike.bench.api.attack import BLACK_BOX_STAGE
from robustspike.bench.api.attack import EVENT
from robustspike.bench.api.attack import LOSSES
from robustspike.bench.api.attack import Access
from robustspike.bench.api.attack import AccessDenied
from robustspike.bench.api.attack import Attack
from robustspike.bench.api.attack import AttackSpec
from robustspike.bench.api.attack import BpttEstimator
from robustspike.bench.api.attack import Budget
from robustspike.bench.api.attack import BudgetExceeded
from robustspike.bench.api.attack import DeferredRule
from robustspike.bench.api.attack import DiscreteGeometry
from robustspike.bench.api.attack import Domain
from robustspike.bench.api.attack import EstimatorRefused
from robustspike.bench.api.attack import EventLists
from robustspike.bench.api.attack import Geometry
from robustspike.bench.api.attack import Goal
from robustspike.bench.api.attack import GradientEstimator
from robustspike.bench.api.attack import Loss
from robustspike.bench.api.attack import LossGrad
from robustspike.bench.api.attack import Memory
from robustspike.bench.api.attack import Native
from robustspike.bench.api.attack import Neuron
from robustspike.bench.api.attack import Oracle
from robustspike.bench.api.attack import Recording
from robustspike.bench.api.attack import RowStreams
from robustspike.bench.api.attack import SequenceRule
from robustspike.bench.api.attack import SpikeRule
from robustspike.bench.api.attack import SurrogateEstimator
from robustspike.bench.api.attack import Task
from robustspike.bench.api.attack import ThreatModel
from robustspike.bench.api.attack import ThreatViolation
from robustspike.bench.api.attack import bin_events
from robustspike.bench.api.attack import compiled
from robustspike.bench.api.attack import cross_entropy
from robustspike.bench.api.attack import dlr
from robustspike.bench.api.attack import from_lines
from robustspike.bench.api.attack import generator
from robustspike.bench.api.attack import gmsd
from robustspike.bench.api.attack import haarpsi
from robustspike.bench.api.attack import learned
from robustspike.bench.api.attack import luma
from robustspike.bench.api.attack import margin
from robustspike.bench.api.attack import needs_of
from robustspike.bench.api.attack import parse_call
from robustspike.bench.api.attack import psnr
from robustspike.bench.api.attack import recording
from robustspike.bench.api.attack import registry
from robustspike.bench.api.attack import replace_gradient
from robustspike.bench.api.attack import ssim
from robustspike.bench.api.attack import strongest_other
from robustspike.bench.api.attack import to_lines
from robustspike.bench.api.data import ArrayData
from robustspike.bench.api.data import Dataset
from robustspike.bench.api.data import Sensor
from robustspike.bench.api.data import Split
from robustspike.bench.api.data import SplitName
from robustspike.bench.api.data import as_split
from robustspike.bench.api.data import read_spike_dat
from robustspike.bench.api.data import read_spike_npz
from robustspike.bench.api.data import spike_frames
from robustspike.bench.api.data import stratified
from robustspike.bench.api.defense import Certified
from robustspike.bench.api.defense import Combined
from robustspike.bench.api.defense import Defense
from robustspike.bench.api.defense import DefenseBase
from robustspike.bench.api.defense import DefenseSpec
from robustspike.bench.api.defense import Progress
from robustspike.bench.api.defense import Report
from robustspike.bench.api.defense import Schedule
from robustspike.bench.api.defense import Step
from robustspike.bench.api.defense import Terms
from robustspike.bench.api.defense import accuracy
from robustspike.bench.api.defense import certify
from robustspike.bench.api.defense import fit
from robustspike.bench.api.defense import initialise
from robustspike.bench.api.defense import supplied_with
from robustspike.bench.api.measure import ArtefactError
from robustspike.bench.api.measure import BenchError
from robustspike.bench.api.measure import ConfigError
from robustspike.bench.api.measure import ContractError
from robustspike.bench.api.measure import EnergyCost
from robustspike.bench.api.measure import Evaluation
from robustspike.bench.api.measure import ShardResult
from robustspike.bench.api.measure import Status
from robustspike.bench.api.measure import VictimFailed
from robustspike.bench.api.measure import count_synops
from robustspike.bench.api.measure import evaluate
from robustspike.bench.api.measure import evaluate_shard
from robustspike.bench.api.measure import spearman
from robustspike.bench.api.victim import ModuleVictim
from robustspike.bench.api.victim import NetworkRecipe
from robustspike.bench.api.victim import RegressorRecipe
from robustspike.bench.api.victim import VictimRecipe
from robustspike.bench.api.victim import VictimSpec
from robustspike.bench.api.victim import adapt
from robustspike.bench.api.victim import build_network
from robustspike.bench.api.victim import check_victim
from robustspike.bench.api.victim import find_neurons
from robustspike.bench.api.victim import find_weights
from robustspike.bench.api.victim import fingerprint_inputs
from robustspike.bench.api.victim import joint
from robustspike.bench.api.victim import legacy_spikingjelly
from robustspike.bench.api.victim import load_victim
from robustspike.bench.api.victim import made_network
from robustspike.bench.api.victim import reset
from robustspike.bench.api.victim import wrap

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
    "Geometry",
    "Goal",
    "GradientEstimator",
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
    "RegressorRecipe",
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
    "Task",
    "Terms",
    "ThreatModel",
    "ThreatViolation",
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
    "compiled",
    "count_synops",
    "cross_entropy",
    "dlr",
    "evaluate",
    "evaluate_shard",
    "find_neurons",
    "find_weights",
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
    "stratified",
    "strongest_other",
    "supplied_with",
    "to_lines",
    "wrap",
]
