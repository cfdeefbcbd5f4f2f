"""Who works in a run folder that several machines share, where locks may not carry from one machine to another.

``flock`` tells the processes of one machine apart. Whether it also does so between machines depends on how a network
file system is mounted (Lustre with ``localflock``, NFS with ``local_lock``), which nobody can ask. So on such file
systems who works in a folder also has a claim there: a file ``.claim-N`` that is made with ``O_EXCL``, which is atomic
on NFS 3 and later, and whose modification time its owner moves on. The owner is who has the highest number. A claim is
free for the next number when it was given back, when its machine has none of the folder's lock any more, or when its
owner has not moved it on for a minute. Two processes that see the same free claim try to make the same next file, and
one of them fails. An owner that was only asleep finds a higher number before it writes, and stops.

Times are compared in the clock of the file server.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from recbole_prune.errors import BusyError

PREFIX = ".claim-"
SECONDS_UNTIL_FREE = 60.0
_SECONDS_BETWEEN_BEATS = 10.0
_LONGEST = 4096
_MOUNTS = Path("/proc/self/mountinfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# file systems of one machine; all others may be shared
_LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs bcachefs tmpfs ramfs overlay aufs vfat exfat ntfs ntfs3 rootfs".split()
)


class Claim:
    """The claim of this process to a folder.

    Args:
        folder: that is claimed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._given_back = threading.Event()

    def acquire(self, now: float, locks_work: bool) -> None:
        """Claim the folder.

        Args:
            now: the file server's time.
            locks_work: whether the folder's ``flock`` is held, so that another owner on this machine is dead.

        Raises:
            BusyError: another machine works in it, or did so less than a minute ago.
            OSError: the disk takes no claim.
        """
        last = highest(self._folder)
        if last and not _is_free(self._folder / f"{PREFIX}{last}", now, locks_work):
            raise BusyError(
                f"another machine{_owner(self._folder / f'{PREFIX}{last}')} is working in {self._folder}; wait for it "
                f"or stop it (one that was killed counts as working for {SECONDS_UNTIL_FREE:.0f} s more)"
            )
        number = last + 1
        try:
            descriptor = os.open(self._folder / f"{PREFIX}{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            raise BusyError(f"another machine has just begun to work in {self._folder}; wait for it") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({"machine": _machine(), "host": socket.gethostname(), "pid": os.getpid()}).encode())
        if highest(self._folder) != number:  # others came and went between two looks, and numbers were freed
            (self._folder / f"{PREFIX}{number}").unlink(missing_ok=True)
            raise BusyError(f"another machine has just begun to work in {self._folder}; wait for it")
        self._number = number
        for earlier in _numbers(self._folder):
            if earlier < number:
                with suppress(OSError):
                    (self._folder / f"{PREFIX}{earlier}").unlink()
        threading.Thread(target=self._beat, args=(self._folder / f"{PREFIX}{number}",), daemon=True).start()

    def is_held(self) -> bool:
        """Whether nobody has taken the folder over."""
        return highest(self._folder) == self._number

    def release(self) -> None:
        """Give it back; the file stays, so that numbers only rise."""
        self._given_back.set()
        with suppress(OSError):
            os.utime(self._folder / f"{PREFIX}{self._number}", (0, 0))

    def _beat(self, path: Path) -> None:
        while not self._given_back.wait(_SECONDS_BETWEEN_BEATS):
            with suppress(OSError):  # a server that is away for a while
                os.utime(path)


def is_claimed(folder: Path) -> bool:
    """Whether another machine works in a folder, as far as the clock of this one tells."""
    last = highest(folder)
    return bool(last) and not _is_free(folder / f"{PREFIX}{last}", time.time(), locks_work=True)


def is_shared(folder: Path) -> bool:
    """Whether other machines may see a folder; where the system does not say what is mounted, no."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    place = os.path.realpath(folder)
    kind, longest = "", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = fields[4].encode(errors="surrogateescape").decode("unicode_escape").rstrip("/")
        if (place == point or place.startswith(f"{point}/")) and len(point) >= longest:
            kind, longest = after.split(" ")[0], len(point)
    return longest >= 0 and kind not in _LOCAL


def highest(folder: Path) -> int:
    """The highest number of a claim to a folder, 0 where there is none."""
    return max(_numbers(folder), default=0)


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    ends = [name[len(PREFIX) :] for name in names if name.startswith(PREFIX)]
    return [int(end) for end in ends if end.isascii() and end.isdecimal() and len(end) < 10]


def _is_free(path: Path, now: float, locks_work: bool) -> bool:
    try:
        seconds = path.stat().st_mtime
    except FileNotFoundError:
        return False  # its successor has just removed it
    if seconds == 0 or now - seconds > SECONDS_UNTIL_FREE:
        return True
    return locks_work and _content(path).get("machine") == _machine()


def _content(path: Path) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_LONGEST))
    except (OSError, ValueError, RecursionError):  # its owner is about to write it
        return {}
    return found if isinstance(found, dict) else {}


def _owner(path: Path) -> str:
    host = _content(path).get("host")
    return f" ({host})" if isinstance(host, str) else ""


def _machine() -> str:
    """What tells this machine, since it was started, from others."""
    try:
        return f"{socket.gethostname()} {_BOOT.read_text().strip()}"
    except OSError:
        return socket.gethostname()
