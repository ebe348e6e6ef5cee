"""The offline switch; how tests are dealt to processes. The fixtures that all tests share are in `fixtures.py`."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C send it to themselves and to processes

# no test is timed, and each run tries the same examples
settings.register_profile("here", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

SHARED = ("tests/ray/", "tests/serve/test_page.py", "tests/serve/test_process.py")
"""Folders, and files of one folder, whose tests share something that is slow to start: a cluster, a server."""

LONG = (
    *("tests/ray/", "tests/reproduce/", "tests/golden/", "tests/captions/test_writing.py", "tests/cli/test_adapt.py"),
    *("tests/cli/test_cli.py", "tests/cli/test_demo.py", "tests/serve/test_openapi.py", "tests/serve/test_page.py"),
    *("tests/test_card.py", "tests/test_check.py", "tests/tools/test_train.py", "tests/training/test_adapting.py"),
)
"""Files that take long for the number of their tests. They are dealt first: at the end, one would keep all waiting."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n N --dist loadgroup`: the tests of a file stay together, and so do those that share something.

    Not by the marker `xdist_group`, which xdist 3.8 overlooks with pytest 9.2.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file.rpartition("/")[0] if file.startswith(SHARED) else file

    return Grouped(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts files for the processes that run them: those that take long, then those of many tests."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (not item.nodeid.startswith(LONG), -tests[item.path]))


def pytest_configure(config: pytest.Config) -> None:
    """Loads the shared fixtures, and torch with them, but not in a process that only deals tests to others."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no" or config.option.collectonly:
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """Undoes what an earlier run of the command line set for its own process."""
    logging.getLogger("vidembed").setLevel(logging.NOTSET)
