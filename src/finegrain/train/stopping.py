"""A signal ends a run after the step at hand, with everything saved."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The run was told to stop, and has saved itself; the exit code is 128 + the signal, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals:
    """While it is entered, SIGTERM and SIGINT are only noted. Signals reach the main thread alone; elsewhere nothing is noted."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number

    def stopped(self, run_folder: Path, *, step: int, says: bool) -> Stopped:
        """What to raise, after one line on stderr by the process that `says` it."""
        number = self.number or signal.SIGTERM  # another process may have been told
        if says:
            name = signal.Signals(number).name
            print(
                f"finegrain: {name}: saved step {step} in {run_folder}; the same command goes on from there",
                file=sys.stderr,
                flush=True,
            )
        return Stopped(number)
