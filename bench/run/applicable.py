"""Certificates that a loaded network does not allow, taken out of a plan."""

from __future__ import annotations

import dataclasses

from robustspike.bench.certify.contract import Certifier
from robustspike.bench.run.compute import Settings
from robustspike.bench.suite.cell import NotApplicable
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.suite.plan import Plan


def applicable(plan: Plan, settings: Settings) -> Plan:
    """Return a plan without the certificates that their networks do not allow, which are then n/a.

    Only networks that are to be certified are loaded.

    Raises: ConfigError: nothing is left to measure.
    """
    kept, misfits = [], dict.fromkeys(plan.not_applicable)
    for cell in plan.cells:
        reason = None
        if cell.certify:
            certifier: Certifier = cell.rules.get(cell.attack, **dict(cell.attack_params))
            reason = certifier.fits(victim_of(cell, weights=settings.weights, device=settings.device))
        if reason:
            misfits[NotApplicable(cell.victim, cell.defense, f"{cell.attack}: {reason}")] = None
        else:
            kept.append(cell)
    return dataclasses.replace(plan, cells=tuple(kept), not_applicable=tuple(misfits))
