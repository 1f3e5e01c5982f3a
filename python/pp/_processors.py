"""How many processors this process may really use: what "autodetect" means."""

from __future__ import annotations

import math
import os
import sys
from typing import Iterator, Optional, Tuple


def detect() -> int:
    """The processors that this process may use at once, at least 1: those of the machine, of its affinity, or of its
    control groups (a container's --cpus), whichever are fewest. A part of one counts as one."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    if sys.platform.startswith("linux"):
        quota = _quota("/proc/self/cgroup", "/proc/self/mountinfo")
        if quota is not None:
            count = min(count, math.ceil(quota))
    return max(1, count)


def _quota(groups: str, mounts: str) -> Optional[float]:
    """The processors that the control groups named in these two files of /proc leave; None: no limit is known. A group
    cannot have more than those above it."""
    least: Optional[float] = None
    try:
        for directory, version in _directories(groups, mounts):
            try:
                if version == 2:
                    with open(os.path.join(directory, "cpu.max")) as f:
                        most, period = f.read().split()
                else:
                    with open(os.path.join(directory, "cpu.cfs_quota_us")) as f:
                        most = f.read().strip()
                    with open(os.path.join(directory, "cpu.cfs_period_us")) as f:
                        period = f.read().strip()
                processors = float(most) / float(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue  # no such controller, or "max"
            if processors > 0 and (least is None or processors < least):
                least = processors
    except OSError:
        return None
    return least


def _directories(groups: str, mounts: str) -> Iterator[Tuple[str, int]]:
    """The directories of this process's control groups for processors and of those above them, with their version."""
    places = {}  # version -> (root of the mount in the hierarchy, where it is mounted)
    with open(mounts) as f:
        for line in f:
            before, _, after = line.partition(" - ")
            words, kind = before.split(), after.split()
            if len(words) < 5 or len(kind) < 3:
                continue
            if kind[0] == "cgroup2":
                places[2] = (words[3], words[4])
            elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
                places[1] = (words[3], words[4])
    with open(groups) as f:
        for line in f:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            version = 2 if number == "0" and not controllers else 1
            if version == 1 and "cpu" not in controllers.split(","):
                continue
            if version not in places:
                continue
            root, mount = places[version]
            below = os.path.relpath(path, root)
            if below.startswith(".."):
                below = "."  # seen from inside of a container: its own group is the root of what is mounted
            directory = os.path.normpath(os.path.join(mount, below))
            while True:
                yield directory, version
                if directory == mount or len(directory) <= len(mount):
                    break
                directory = os.path.dirname(directory)
