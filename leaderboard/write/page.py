"""The leaderboard as one self-contained page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment
from jinja2 import PackageLoader
from jinja2 import StrictUndefined
from jinja2 import Template
from markupsafe import Markup
from markupsafe import escape

from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.write import curves
from robustspike.leaderboard.write.markdown import LEFT_OUT
from robustspike.leaderboard.write.markdown import NOTHING
from robustspike.leaderboard.write.markdown import has_defenses
from robustspike.leaderboard.write.markdown import introductions
from robustspike.leaderboard.write.markdown import legend


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("robustspike.leaderboard.write", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marks"] = _marks
    return environment.get_template("page.html.j2")


def _marks(text: str) -> Markup:
    """Turn *emphasis* and `code` of a line into elements; everything else is escaped."""
    safe = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))


def to_html(
    sections: Sequence[Section], about: Sequence[str] = (), left_out: Mapping[str, str] = NOTHING
) -> str:
    """Return the leaderboard as a page; intervals are drawn as bars (see `to_markdown` for arguments)."""
    return _template().render(
        about=about,
        introductions=introductions(sections),
        sections=[
            {
                "title": section.title,
                "protocol": section.protocol,
                "tables": section.tables(),
                "charts": curves.charts(section) if len(section.curves) else None,
            }
            for section in sections
        ],
        legend=legend(sections),
        left_out_title=LEFT_OUT,
        left_out=left_out if has_defenses(sections) else NOTHING,
    )
