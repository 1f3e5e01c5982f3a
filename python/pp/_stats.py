"""What a server counted, and how Parallel Python prints it."""

from __future__ import annotations

from typing import Dict, List


class Statistics:
    """What one node did for a server.

    Attributes:
        ncpus: how many tasks it may run at once.
        njobs: how many it ended.
        time: seconds that these ran, summed up.
    """

    def __init__(self, ncpus: int = 0) -> None:
        self.ncpus = ncpus
        self.njobs = 0
        self.time = 0.0

    def __repr__(self) -> str:
        return "Statistics(ncpus=%d, njobs=%d, time=%.4f)" % (self.ncpus, self.njobs, self.time)


def table(stats: Dict[str, Statistics], elapsed: float, active: int, cores: int) -> str:
    """The table of print_stats: a row for each node that did something, in the order of stats. Programs read it: each
    blank counts."""
    all_jobs = sum(s.njobs for s in stats.values())
    lines: List[str] = [
        "Job execution statistics:",
        " job count | % of all jobs | job time sum | time per job | job server",
    ]
    for name, s in stats.items():
        if s.njobs:
            row = (s.njobs, 100.0 * s.njobs / all_jobs, s.time, s.time / s.njobs, name)
            lines.append("    %6i |        %6.2f |     %8.4f |  %11.6f | %s" % row)
    lines.append("Time elapsed since server creation %s" % elapsed)
    lines.append("%s active tasks, %s cores" % (active, cores))
    return "\n".join(lines) + "\n"
