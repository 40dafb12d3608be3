"""All devices under one key of a tracker that are alike, as one device that several candidates run on at once.

A candidate cannot end a session (packed.c), so one that ends was lost with its device: what it ran is tried again on
another device that has just answered. Where a candidate is the last thing that two devices did, while a third one does
answer, it gets the blame after all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from convc.errors import TargetMismatchError, UsageError
from convc.target import Target
from convc.tune.child import Ended
from convc.tune.device import Timed
from convc.tune.library import trial_library
from convc.tune.remote import Lost, RemoteDevice
from convc.tune.tracker import NoDeviceError, Tracker
from convc.tune.workload import Data

WAIT = 60.0  # seconds that are waited for a device where there is none
MOST = 16  # sessions at once

Found = TypeVar("Found")


class Fleet:
    """A `Device` whose calls may come from `width` threads at once; each is answered by any of its devices.

    The first device decides what they are alike to: one of another name is left to others, for its times say nothing
    about these. `told` hears of devices that come, go, or are left. Every call raises NoDeviceError where there is no
    device within WAIT seconds; nothing is then known of the candidate.
    """

    def __init__(self, tracker: Tracker, target: Target, *, told: Callable[[str], None] = lambda note: None) -> None:
        self.tracker, self.target, self._told = tracker, target, told
        self._probe = trial_library((), target)
        self._library = self._probe
        self._change = threading.Condition()
        self._idle: list[RemoteDevice] = []
        self._count = 0  # of sessions, idle or not
        self._strangers: set[str] = set()
        self._end: NoDeviceError | None = None
        first = self._opened(WAIT)
        self.name = first.name
        self._take_in(first)
        self._join()

    @property
    def width(self) -> int:
        """How many candidates may run at once."""
        return max(1, self._count)

    def load(self, library: bytes) -> None:
        """Make it current; each device gets it when it is needed there."""
        self._library = library
        self._join()

    def check(self, index: int, data: Data, *, threads: int) -> tuple[int, float]:
        return self._anywhere(lambda device: device.check(index, data, threads=threads))

    def time(self, indices: Sequence[int], data: Data, *, threads: int, seconds: float) -> list[Timed]:
        return self._anywhere(lambda device: device.time(indices, data, threads=threads, seconds=seconds))

    def close(self) -> None:
        """Give all devices back; those at work as soon as they have answered."""
        with self._change:
            self._end = self._end or NoDeviceError("the devices were given back")
            idle, self._idle = self._idle, []
            self._change.notify_all()
        for device in idle:
            device.leave()

    def _anywhere(self, ask: Callable[[RemoteDevice], Found]) -> Found:
        losses: list[tuple[RemoteDevice, Lost]] = []
        while True:
            device = self._taken()
            at_work = False
            try:
                if losses:
                    device.ping()
                if len(losses) > 1:
                    raise _blame(losses)
                device.load(self._library)
                at_work = True
                found = ask(device)
            except Lost as error:
                self._drop(device, error.reason, at_work=at_work)
                if at_work:
                    losses.append((device, error))
            except BaseException:
                self._give_back(device)
                raise
            else:
                self._give_back(device)
                return found

    # -- which device --

    def _taken(self) -> RemoteDevice:
        """An idle device, waited for where all are at work; a new one where there is none at all."""
        with self._change:
            while not self._idle and self._count and not self._end:
                self._change.wait()
            if self._end:
                raise self._end
            if self._idle:
                return self._idle.pop()
            self._count += 1  # so that the others wait for this one
        try:
            return self._alike()
        except BaseException as error:
            with self._change:
                self._count -= 1
                if isinstance(error, NoDeviceError):
                    self._end = error
                self._change.notify_all()
            raise

    def _give_back(self, device: RemoteDevice) -> None:
        if leaves := device.is_due or self._end is not None:
            device.leave()
        with self._change:
            if leaves:
                self._count -= 1
            else:
                self._idle.append(device)
            self._change.notify_all()

    def _drop(self, device: RemoteDevice, reason: str, *, at_work: bool) -> None:
        device.close()
        retried = "; what it was asked for is tried on another device" if at_work else ""
        self._told(f"{device} was lost: {reason}{retried}")
        with self._change:
            self._count -= 1
            self._change.notify_all()

    # -- what the tracker has --

    def _join(self) -> None:
        """Take in the devices that are free by now."""
        try:
            free = self.tracker.count()[1] - len(self._strangers)
        except NoDeviceError as error:
            self._told(f"{error}; {self._count} devices go on without it")
            return
        if (room := min(free, MOST - self._count)) > 0:
            with ThreadPoolExecutor(room) as pool:
                list(pool.map(lambda _: self._join_one(), range(room)))

    def _join_one(self) -> None:
        try:
            device = self._opened(1.0)
        except (NoDeviceError, TargetMismatchError, UsageError) as error:
            self._told(str(error))
            return
        if device.name == self.name:
            self._take_in(device)
        else:
            self._refuse(device)

    def _alike(self) -> RemoteDevice:
        """A device of our name within WAIT seconds."""
        until = time.monotonic() + WAIT
        while True:
            try:
                device = self._opened(max(0.1, until - time.monotonic()))
            except (TargetMismatchError, UsageError) as error:
                self._told(str(error))
                continue
            if device.name == self.name:
                self._told(f"measuring on {device}")
                return device
            self._refuse(device)

    def _opened(self, wait: float) -> RemoteDevice:
        """The next device that the tracker has. One that does not answer makes way for the one after it."""
        until = time.monotonic() + wait
        while True:
            place = self.tracker.request(max(0.1, until - time.monotonic()))
            try:
                return RemoteDevice(place, self.target, self._probe)
            except Lost as error:
                self._told(f"{place} does not answer: {error.reason}")

    def _take_in(self, device: RemoteDevice) -> None:
        self._told(f"measuring on {device}")
        with self._change:
            self._count += 1
        self._give_back(device)

    def _refuse(self, device: RemoteDevice) -> None:
        self._told(f"{device} is left to others: this session measures on {self.name}")
        self._strangers.add(str(device.place))
        device.leave()


def _blame(losses: Sequence[tuple[RemoteDevice, Lost]]) -> Ended:
    devices = " and ".join(str(device.place) for device, _ in losses)
    last = losses[-1][1]
    return Ended(last.status, f"{devices} were lost while they ran it: {last.reason}")
