"""At the start of a driver: the ledger is made to say what the run folder shows."""

from __future__ import annotations

import logging

from .folder import RunFolder
from .ledger import Ledger

logger = logging.getLogger(__name__)


def reconcile(folder: RunFolder, ledger: Ledger) -> None:
    """Sweep what killed writers left, and take the states from the files.

    A clip without its record goes: its writer was killed between the two, and what was rendered is mostly still kept
    by its machine. A record without its clip goes, too, and the clip is made again.
    """
    folder.sweep()
    found = folder.walk()
    for task_id in filter(ledger.knows, found.orphans | found.strays):  # another shard may be about to write its record
        if folder.is_done(task_id):  # it was completed meanwhile
            found.done.add(task_id)
            continue
        logger.warning("%s is not whole; it is made again", task_id[:12])
        folder.forget_unfinished(task_id)
    ledger.reconcile(found)
