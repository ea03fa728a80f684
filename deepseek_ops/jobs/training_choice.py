"""Which checkpoints go to the store where several machines have to send theirs: chosen by all of them together.

Where each machine sent its own newest one, machines that need more than an interval for that, and not equally long,
would hardly ever send the same one, and none would become whole. So a checkpoint goes up when the one before is whole:
every k-th one, for the k of the slowest machine.
"""

from __future__ import annotations

from deepseek_ops.jobs.agreement import Peers, any_rank
from deepseek_ops.jobs.training_upload import Uploads
from deepseek_ops.training.checkpoints import CheckpointName


def goes_to_store(
    peers: Peers, num_nodes: int, name: CheckpointName, uploads: Uploads | None, *, must: bool = False
) -> bool:
    """Return whether the checkpoint that is about to be taken is sent, the same on every rank; all call it together.

    One machine sends them all, as fast as it can. Several send this one when the one before is whole in the store, or
    will never be, or when this one ``must`` go up: it is somebody's wish, or the last. Call it when nothing is being
    written any more; whoever is told True offers the checkpoint once it is on its disk.

    Args:
        peers: The ranks of all machines.
        num_nodes: How many machines there are.
        name: The checkpoint.
        uploads: Of this machine; None on ranks that are not its first.
        must: Equal on all ranks.
    """
    if num_nodes == 1:
        return True
    chosen = any_rank(peers, must or (uploads is not None and uploads.wants_another()))
    if chosen and uploads is not None:
        uploads.expect(name)
    return chosen
