"""Threads that run the callbacks of a server."""

from __future__ import annotations

import threading
from collections import deque
from typing import Callable, Deque

_MOST = 256
"""Threads of one server. A callback may wait for other tasks, whose callbacks need threads of their own; but without a bound
a burst of tasks would make as many threads."""


class Callbacks:
    """Runs what it is given, each in a thread; a thread that is free is used again. The threads end with the program."""

    def __init__(self) -> None:
        self._lock = threading.Condition(threading.Lock())  # guards what follows
        self._waiting: Deque[Callable[[], None]] = deque()
        self._threads = 0
        self._free = 0

    def run(self, work: Callable[[], None]) -> None:
        """Runs work soon, in a thread. It must not raise."""
        with self._lock:
            self._waiting.append(work)
            if self._free >= len(self._waiting) or self._threads >= _MOST:
                self._lock.notify()
                return
            self._threads += 1
        threading.Thread(target=self._serve, name="pp-callback", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    self._free += 1
                    woken = self._lock.wait(1.0)
                    self._free -= 1
                    if not woken and not self._waiting:
                        self._threads -= 1
                        return
                work = self._waiting.popleft()
            work()
            del work  # not held while this thread waits
