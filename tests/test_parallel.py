"""Processes end with the one that started them."""

import os
import signal
import subprocess
import sys
import time


def test_what_keeps_the_queues_ends_when_its_parent_is_killed():
    code = (
        "import multiprocessing, time\n"
        "from finegrain.parallel import queues\n"
        "with queues() as manager:\n"
        "    manager.Queue().put(1)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        keeper = int(parent.stdout.readline())
        assert _runs(keeper)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _runs(keeper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(keeper)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
