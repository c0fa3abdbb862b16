"""Make the ledger agree with the run folder when a driver starts."""

from __future__ import annotations

import logging

from .folder import RunFolder
from .ledger import Ledger

logger = logging.getLogger(__name__)


def reconcile(folder: RunFolder, ledger: Ledger) -> None:
    """Delete leftovers of killed writers, and take the states of tasks from the files.

    A video without its record is deleted: its writer was killed between the two, and the render is usually still in
    the machine's spool. A record without its video is deleted, too. Both tasks are rendered again.
    """
    folder.sweep()
    scan = folder.scan()
    for task_id in filter(ledger.knows, scan.orphans | scan.strays):  # another shard may be about to write its record
        if folder.is_done(task_id):  # it was completed meanwhile
            scan.done.add(task_id)
            continue
        logger.warning("%s is incomplete. It is rendered again", task_id[:12])
        folder.forget_unfinished(task_id)
    ledger.apply_scan(scan)
