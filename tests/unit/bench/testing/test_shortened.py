"""Attacks on quality models are checked at lengths that take seconds."""

from __future__ import annotations

from robustspike.bench.api import registry
from robustspike.bench.testing.quality_checks import shortened


def test_long_attacks_are_shortened_and_say_where() -> None:
    short, changed = shortened(registry("attacks").get("quality.nes"))
    assert changed == {"iterations": 4} and short.iterations == 4 and short.samples == 20
    short, changed = shortened(registry("attacks").get("quality.facpa", images=512))
    assert changed == {"images": 32} and short.epochs == 2


def test_what_is_short_enough_or_no_dataclass_stays_as_it_is() -> None:
    brief = registry("attacks").get("quality.square", queries=50)
    assert shortened(brief) == (brief, {})

    class Plain:
        queries = 1000

    plain = Plain()
    assert shortened(plain) == (plain, {})
