"""What an attack, a gradient estimator or a geometry needs."""

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.fitting import needs_of
from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import API_VERSION
from robustspike.bench.contract.specs import BLACK_BOX_STAGE
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import AttackSpec
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import bin_events
from robustspike.bench.data.events.events import recording
from robustspike.bench.errors import AccessDenied
from robustspike.bench.errors import BudgetExceeded
from robustspike.bench.errors import EstimatorRefused
from robustspike.bench.errors import ThreatViolation
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
from robustspike.bench.snn import compiled
from robustspike.bench.snn.estimators import BpttEstimator
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.snn.estimators import Native
from robustspike.bench.snn.estimators import SurrogateEstimator
from robustspike.bench.snn.neurons import DeferredRule
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SequenceRule
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.snn.neurons import replace_gradient
from robustspike.bench.threats.geometry import DiscreteGeometry
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.threats.retiming import from_lines
from robustspike.bench.threats.retiming import to_lines

__all__ = [
    "API_VERSION",
    "BLACK_BOX_STAGE",
    "EVENT",
    "LOSSES",
    "Access",
    "AccessDenied",
    "Attack",
    "AttackSpec",
    "BpttEstimator",
    "Budget",
    "BudgetExceeded",
    "DeferredRule",
    "DiscreteGeometry",
    "Domain",
    "EstimatorRefused",
    "EventLists",
    "Geometry",
    "Goal",
    "GradientEstimator",
    "Loss",
    "LossGrad",
    "Memory",
    "Native",
    "Neuron",
    "Oracle",
    "Recording",
    "RowStreams",
    "SequenceRule",
    "SpikeRule",
    "SurrogateEstimator",
    "Task",
    "ThreatModel",
    "ThreatViolation",
    "bin_events",
    "compiled",
    "cross_entropy",
    "dlr",
    "from_lines",
    "generator",
    "gmsd",
    "haarpsi",
    "learned",
    "luma",
    "margin",
    "needs_of",
    "parse_call",
    "psnr",
    "recording",
    "registry",
    "replace_gradient",
    "ssim",
    "strongest_other",
    "to_lines",
]
