"""π by throwing darts, from an asyncio program: the event loop goes on while the mesh computes.

    meshnode python examples/python/pi.py
"""

import asyncio
import random

from meshnode import Executor


def hits(seed, darts):
    r = random.Random(seed)
    return sum(r.random() ** 2 + r.random() ** 2 < 1 for _ in range(darts))


async def main(parts=8, darts=50000):
    loop = asyncio.get_running_loop()
    with Executor() as executor:
        parts_of = [loop.run_in_executor(executor, hits, seed, darts) for seed in range(parts)]
        total = sum(await asyncio.gather(*parts_of))
    print("π is about %.2f" % (4 * total / (parts * darts)))


if __name__ == "__main__":
    asyncio.run(main())
