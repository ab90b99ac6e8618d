"""Which volumes a process evaluates when several share the work."""

from __future__ import annotations

from collections.abc import Sized

import ignite.distributed as idist


def own_share(dataset: Sized, fewer: str = "error") -> range:
    """The items that this process evaluates: contiguous blocks, so that gathered results keep their order.

    Args:
        dataset: anything with a length.
        fewer: what to do if there are fewer items than processes, so that some would have none and the others would
            wait forever: raise an "error", or give "all" items to every process, which leaves means unchanged.

    Raises:
        SystemExit: fewer items than processes.
    """
    count, processes = len(dataset), idist.get_world_size()
    if count < processes:
        if fewer == "all":
            return range(count)
        raise SystemExit(f"{count} volumes for {processes} processes: start at most {count}")
    first, last = (count * (idist.get_rank() + more) // processes for more in (0, 1))
    return range(first, last)
