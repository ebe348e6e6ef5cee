"""Stands in for decord, in a loop of its own: says who it is, and waits for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

Path(os.environ["VIDEMBED_TEST_SLEEPER"]).write_text(str(os.getpid()))
while True:
    time.sleep(1)
