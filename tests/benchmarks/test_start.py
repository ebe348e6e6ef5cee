from __future__ import annotations

from benchmarks import start

LOG = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   torch.nn
import time:       200 |        300 | torch
Warning: not of the table
import time:       700 |       1000 | av
"""


def test_time_of_modules_is_summed_by_package_most_first() -> None:
    assert start.imports(LOG) == {"av": 0.0007, "torch": 0.0003}
    assert start.shares(start.imports(LOG)) == {"av": 0.7, "torch": 0.3}
