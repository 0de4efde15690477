"""Adversarial inputs that were handed in alone, without the attack that found them: how a record says so."""

from __future__ import annotations

from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import digest
from robustspike.bench.record.threat import encode_threat

ATTACK = "inputs"
"""What stands for the attack in such a record."""

_FIELDS = ("victim", "defense", "label", "dataset", "split", "samples", "shard", "seed")


def by(record: CellRecord) -> str:
    """Return who handed a record's inputs in; nothing for a record that an attack made."""
    return str(record.parameters.get("given", {}).get("by", ""))


def source(record: CellRecord) -> str:
    """Return where the inputs of a record are described; nothing where that was not said."""
    return str(record.parameters.get("given", {}).get("source", ""))


def key_of(record: CellRecord) -> str:
    """Return the key of a record of handed-in inputs: the digest of what its verdicts hang on."""
    wanted = ("weights", "data", "adversarials")
    return digest(
        {
            "protocol": PROTOCOL,
            "given": dict(record.parameters["given"]),
            "cell": dict(record.parameters["cell"]),
            "threat": encode_threat(record.threat),
            "digests": {name: record.digests[name] for name in wanted},
            **{name: getattr(record, name) for name in _FIELDS},
        }
    )
