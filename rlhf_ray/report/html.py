"""Pages that need nothing else, no network included.

Model text is hostile input: the templates escape everything, chart data is JSON that cannot close its element, and a
content security policy lets only the page's own two scripts run and nothing load.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_ray.report.curves import Chart
from rlhf_ray.report.facts import show
from rlhf_ray.rundir.lines import finite


def render(template: str, charts: Sequence[Chart], variables: Mapping[str, object]) -> str:
    """The page that `template`, a file of this folder, makes of `variables`; its script draws `charts`."""
    import jinja2
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # plotly ships no types

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": show}
    specs = finite([chart.spec() for chart in charts])
    return environment.get_template(template).render(
        **variables, specs=specs, plotly_js=get_plotlyjs(), nonce=secrets.token_urlsafe(16)
    )
