"""What a training rule, an input filter or a certifier needs."""

from robustspike.bench.certify.base import certify
from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.specs import DefenseSpec
from robustspike.bench.snn.neurons import supplied_with
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

__all__ = [
    "Certified",
    "Combined",
    "Defense",
    "DefenseBase",
    "DefenseSpec",
    "Progress",
    "Report",
    "Schedule",
    "Step",
    "Terms",
    "accuracy",
    "certify",
    "fit",
    "initialise",
    "supplied_with",
]
