"""Sends checkpoints to the store behind the training's back, one at a time; a newer one takes a waiting one's place.

A store that is away delays uploads and nothing else: the training goes on, the checkpoints on this machine's disk are
there, and when the store is back the newest one goes up. Each machine sends its part; when all parts are there the
first machine declares the checkpoint whole. An attempt that is no longer the newest declares nothing. What several
machines send is agreed on in ``training_choice``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deepseek_ops.core.errors import TransientError
from deepseek_ops.jobs.training_shelf import Shelf, Shelved
from deepseek_ops.jobs.training_store import Sent, StoredCheckpoints
from deepseek_ops.training.checkpoints import CheckpointName, StoredCheckpoint

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
PARTS_POLL_SECONDS = 1.0

Say = Callable[..., None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Whose uploads these are."""

    node: int
    num_nodes: int
    is_current: Callable[[], bool]
    """Whether this attempt may still declare anything."""
    before_whole: Callable[[], None] = lambda: None
    """Brings to the store what a training that goes on from a checkpoint finds beside it. Raises what the store raises.

    On the first machine, in the thread of the uploads, before a checkpoint is declared whole.
    """


@dataclass(frozen=True)
class _Part:
    """This machine's part of a checkpoint that is in the store and not known to be whole there."""

    shelved: Shelved
    sent: Sent
    began: float


class Uploads:
    """The uploads of one machine, in a thread that begins with the first of them."""

    def __init__(
        self, stored: StoredCheckpoints, shelf: Shelf, place: Place, say: Say, *, retry: float = FIRST_RETRY_SECONDS
    ) -> None:
        self._stored, self._shelf, self._place, self._say = stored, shelf, place, say
        self._changed = threading.Condition()
        self._waiting: CheckpointName | None = None
        self._expected: CheckpointName | None = None
        """What all machines send, as they agreed last."""
        self._refused = False
        """Whether the last try failed in a way that another one will not mend."""
        self._healthy: set[CheckpointName] = set()
        """Healthy, and not known to be so in the store."""
        self._behind = False
        """Whether this machine's disk may know more of health than the store."""
        self._gone: set[CheckpointName] = set()
        self._sent: set[CheckpointName] = set()
        self._sending: CheckpointName | None = None
        self._open: dict[CheckpointName, _Part] = {}
        self._busy = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._first_retry = retry
        self.seconds = 0.0
        """How long the last upload took."""

    def offer(self, name: CheckpointName) -> None:
        """Send the checkpoint as soon as the one that is on its way has arrived, unless a newer one comes first."""
        with self._changed:
            self._shelf.hold(name)
            if self._waiting not in (None, name, self._sending):
                self._shelf.let_go(self._waiting)
            self._waiting = name
        self._wake()

    def expect(self, name: CheckpointName) -> None:
        """Know that the machines agreed to send the checkpoint: it is offered here, or cannot be."""
        with self._changed:
            self._expected = name

    def wants_another(self) -> bool:
        """Return whether the machines should send the next checkpoint; asked while none of them is being written.

        The first machine says so when the one before is whole or given up. Every machine does that has not got what
        was agreed on, or whose disk has it no more, or that the store refuses: a part that never comes must not keep
        the others waiting.
        """
        with self._changed:
            if self._refused:
                return True
            if self._place.node == 0 and self._waiting is None and not self._open:
                return True
            return self._expected not in {None, self._waiting, self._sending, *self._open, *self._sent}

    def assume_sent(self, name: CheckpointName) -> None:
        """Know that the checkpoint is in the store: it came from there."""
        with self._changed:
            self._sent.add(name)

    def mark_healthy(self, name: CheckpointName) -> None:
        """Tell the store that the checkpoint is healthy, once it is there."""
        with self._changed:
            self._healthy.add(name)
        self._wake()

    def catch_up(self) -> None:
        """Tell the store what the disk knows to be healthy: whoever found it out may have been killed before."""
        if self._place.node == 0:
            with self._changed:
                self._behind = True
            self._wake()

    def forget(self, names: Iterable[CheckpointName]) -> None:
        """Let checkpoints go in the store: nobody must go on from them."""
        with self._changed:
            self._gone.update(names)
            self._healthy -= self._gone
            for name in self._gone & self._open.keys():
                del self._open[name]
            if self._waiting in self._gone:
                self._shelf.let_go(self._waiting)
                self._waiting = None
        self._wake()

    def drain(self, seconds: float) -> bool:
        """Wait until everything is sent, so long at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._busy or self._work() or self._open) or self._ended, seconds
            )

    def end(self, seconds: float = 30.0) -> None:
        """Send nothing more; returns when the thread has noticed, or after so many seconds."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    # --- the thread ---

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._run, name="checkpoint-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> bool:
        """Return whether there is something to do now; health is told of what is in the store."""
        return self._waiting is not None or self._behind or bool(self._gone) or bool(self._healthy & self._sent)

    def _run(self) -> None:
        delay, delayed_since = self._first_retry, 0.0
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._work() or self._ended, PARTS_POLL_SECONDS if self._open else None)
                if self._ended:
                    return
                self._busy = True
            try:
                self._one_thing()
            except Exception as error:  # noqa: BLE001  (whatever a store's library raises: it is said, and tried again)
                self._refused = not isinstance(error, TransientError)
                if not delayed_since:
                    delayed_since = time.monotonic()
                    outcome = "delayed" if isinstance(error, TransientError) else "failed"
                    self._say(f"checkpoint_upload_{outcome}", checkpoint=str(self._waiting or ""), problem=str(error))
                _log.warning("a checkpoint is not in the store yet: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
            else:
                self._refused = False
                if delayed_since:
                    self._say("checkpoint_upload_resumed", after_seconds=round(time.monotonic() - delayed_since, 1))
                delay, delayed_since = self._first_retry, 0.0

    def _one_thing(self) -> None:
        """Do the most urgent thing. Raises what the store raises; then it stays to be done."""
        with self._changed:
            gone, name = set(self._gone), self._waiting
            healthy = sorted(self._healthy & self._sent)
        if not self._place.is_current():
            self._fenced()
        elif gone:
            self._forget(gone)
        elif name is not None:
            self._send(name)
        elif self._behind:
            self._compare()
        elif healthy:
            for one in healthy:
                if self._place.node == 0:
                    self._stored.mark_healthy(one)
                with self._changed:
                    self._healthy.discard(one)
        else:
            self._declare()

    def _forget(self, gone: set[CheckpointName]) -> None:
        if self._place.node == 0:
            self._stored.remove(sorted(gone, reverse=True))
        with self._changed:
            self._gone -= gone
            self._sent -= gone

    def _compare(self) -> None:
        """Have the store told of every whole checkpoint that is healthy on the disk and not there."""
        here = {one.name for one in self._shelf.all() if one.healthy}
        there = {name for name, healthy in self._stored.whole().items() if not healthy}
        with self._changed:
            untold = (here & there) - self._gone
            self._sent |= untold
            self._healthy |= untold
            self._behind = False

    def _send(self, name: CheckpointName) -> None:
        """Send this machine's files; they stay on the disk until they are sent, whatever comes meanwhile."""
        began = time.monotonic()
        shelved = self._shelf.get(name)
        with self._changed:
            self._sending = name
        try:
            sent = None
            if shelved is not None:
                sent = self._stored.send(name, shelved.folder, shelved.files, node=self._place.node)
        finally:
            with self._changed:
                self._sending = None
                if self._waiting != name:
                    self._shelf.let_go(name)
        with self._changed:
            if self._waiting == name:
                self._waiting = None
                self._shelf.let_go(name)
            if shelved is None or sent is None or name in self._gone:
                return
            self._open[name] = _Part(shelved, sent, began)
        if self._place.node == 0:
            self._declare()
        else:
            self._is_sent(name)

    def _declare(self) -> None:
        """Declare the newest checkpoint whole whose parts are all there.

        One that waits for a part of another machine is looked at again, also when newer ones have been sent since: a
        machine that is slower than the checkpoints come would otherwise keep all of them from ever being whole.
        """
        with self._changed:
            waiting = sorted(self._open.items(), reverse=True, key=lambda item: item[0])
        for name, part in waiting:
            files = self._stored.parts(name, num_nodes=self._place.num_nodes)
            if files is None:
                continue
            if not self._place.is_current():
                self._fenced()
            if self._ended:
                return
            self._place.before_whole()
            one = part.shelved
            self._stored.seal(
                StoredCheckpoint(
                    name=str(name),
                    plan=one.plan,
                    world_size=one.world_size,
                    num_nodes=self._place.num_nodes,
                    calm=one.calm,
                    files=tuple(files),
                )
            )
            self._is_sent(name)
            gone = set(self._stored.prune(held=[name, *self._shelf.pinned]))
            with self._changed:
                self._sent -= gone
                self._healthy -= gone
            return

    def _is_sent(self, name: CheckpointName) -> None:
        with self._changed:
            part = self._open.pop(name, None)
            if part is None:
                return  # it was given up meanwhile, and goes
            for older in [one for one in self._open if one < name]:
                del self._open[older]
            self._sent.add(name)
        self.seconds = time.monotonic() - part.began
        facts = {"bytes": part.sent.num_bytes, "new_bytes": part.sent.new_bytes, "seconds": round(self.seconds, 3)}
        self._say("checkpoint_uploaded", checkpoint=str(name), step=name.step, **facts)

    def _fenced(self) -> None:
        with self._changed:
            self._ended = True
        self._say("checkpoint_fenced", reason="a newer attempt of this training, or a newer job of its plan, writes")
