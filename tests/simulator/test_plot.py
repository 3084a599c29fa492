"""Which settings the plot of a comparison shows."""

import pytest

from serve_app.simulator.comparison import ALL, PROMPT, SETTINGS, TUNED, Comparison
from serve_app.simulator.plot import middle_setting


@pytest.mark.parametrize(("family", "index"), [(TUNED, 1), (PROMPT, 0), (ALL, 0)])
def test_the_middle_setting_of_a_family_is_plotted(family: str, index: int) -> None:
    comparison = Comparison(summaries={setting: [] for setting in SETTINGS}, timelines={})
    expected = [setting for setting in SETTINGS if setting.family == family][index]
    assert middle_setting(comparison, family) == expected
