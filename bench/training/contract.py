"""What a defense is: the protocol that a plugin follows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import ClassVar
from typing import Protocol
from typing import runtime_checkable

if TYPE_CHECKING:
    pass
from robustspike.bench.contract.specs import DefenseSpec


@runtime_checkable
class Defense(Protocol):
    """A training rule, an input filter, or both; a frozen dataclass of plain parameters."""

    spec: ClassVar[DefenseSpec]

    def fits(self, recipe: Any) -> str | None:
        """Say why the defense does not apply to a victim recipe, or None where it does."""
        ...
