"""What the command line asks of a running daemon: the operations of the control socket.

Each takes the arguments of a request and gives JSON values. Nothing here changes what the tree shows; pins,
pulls and evictions change only what is resident.
"""

from __future__ import annotations

from refgenfs.administration.explaining import Explaining
from refgenfs.administration.following import Following
from refgenfs.administration.health import Health
from refgenfs.administration.listing import Listing
from refgenfs.administration.parts import Daemon
from refgenfs.administration.reporting import Reporting
from refgenfs.administration.residency import Residency
from refgenfs.administration.tickets import Tickets
from refgenfs.administration.visitors import Visitor
from refgenfs.control import Operation, OperationsFor


def operations_for(daemon: Daemon) -> OperationsFor:
    """Return what gives each caller the operations of the control socket, as they may have them."""
    everything = operations(daemon)
    return lambda caller: everything if caller.is_master else Visitor(daemon, caller, everything).operations()


def operations(daemon: Daemon) -> dict[str, Operation]:
    """Return every operation by its name on the control socket."""
    return {
        **Explaining(daemon).operations(),
        **Health(daemon).operations(),
        **Listing(daemon).operations(),
        **Residency(daemon).operations(),
        **Tickets(daemon).operations(),
        **Following(daemon).operations(),
    }


__all__ = ["Daemon", "Reporting", "operations", "operations_for"]
