"""A share of a suite's cells, so that several machines measure one suite without knowing of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustspike.bench.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """The cells that fall to one of several machines.

    Which part a cell belongs to follows from its key alone: from nothing that machines could see differently,
    and not from what else a suite holds.

    Args:
        number: which part, from 1.
        of: how many parts there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "3/8". Raises: ConfigError: it is no such fraction, or not one of those parts."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, of = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= of:
            raise ConfigError(
                f"--part {text}: expected NUMBER/OF with NUMBER from 1 to OF, e.g. 3/8 on the third of "
                "eight machines."
            )
        return cls(number, of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, key: str) -> bool:
        """Say whether the cell of a key (hexadecimal digits) is in this part."""
        return int(key, 16) % self.of == self.number - 1


WHOLE = Part(1, 1)
