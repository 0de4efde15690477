"""The key of a cell: a digest of everything that its numbers hang on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustspike.bench.contract.registry import registry
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import digest
from robustspike.bench.record.threat import encode_threat
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.code_digest import code_digest
from robustspike.bench.suite.loading import VICTIMS
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.variant import variant_of
from robustspike.bench.training.weights import plain


def identity(
    cell: Cell, *, weights: Path | None, root: Path | None, device: str
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return a cell's key, the digests that enter it, and the full parameters of its components."""
    variant = variant_of(cell, weights)
    recipe, defense = variant.recipe, variant.trained
    attack = cell.rules.get(cell.attack, **dict(cell.attack_params))
    data = samples_of(cell, root)
    code = {
        "victim": code_digest(recipe, "victims"),
        "defense": code_digest(defense, "defenses"),
        "attack": code_digest(attack, cell.kind, recipe.spec()),
        "dataset": code_digest(recipe.data(), "datasets"),
        "geometry": code_digest(registry("geometries").get(cell.threat.geometry), "geometries"),
    }
    digests = {
        "weights": VICTIMS.digest(cell, weights=weights, device=device),
        "data": data.digest,
        "code": digest(code),
    }
    how = cell.rules.singular
    parameters = {"victim": plain(variant.made), "defense": plain(defense), how: plain(attack)}
    key = digest(
        {
            "protocol": PROTOCOL,
            "digests": digests,
            "parameters": parameters,
            "victim": cell.victim,
            "victim_seed": cell.victim_seed,
            "defense": cell.defense,
            "attack": cell.attack,
            "dataset": cell.dataset,
            "split": cell.split,
            "samples": cell.samples,
            "shard": cell.shard,
            "threat": encode_threat(cell.threat),
            "seed": cell.seed,
        }
        | ({"compiled": True} if cell.compiled else {})
    )
    return key, digests, parameters
