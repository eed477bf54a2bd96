"""What processes and streams take while a federation runs for long, and the rules by which that counts as flat."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIB = 2**20
ALLOWED_GROWTH = 0.05
ALLOWED_GROWTH_BYTES = 4 * MIB
ALLOWED_DESCRIPTORS = 3
ALLOWED_THREADS = 1
SEGMENTS_ABOVE_LIMIT = 2
"""A stream drops whole segments, and only when it begins a new one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one time. `resident_bytes` is its proportional share where the kernel tells it."""

    at_seconds: float
    resident_bytes: int
    descriptors: int
    threads: int


def read_process(pid: int, at_seconds: float) -> Reading:
    """Raises OSError where the process is gone."""
    folder = Path(f"/proc/{pid}")
    threads = _field(folder / "status", "Threads:")
    return Reading(at_seconds, 1024 * _resident_kib(folder), len(list((folder / "fd").iterdir())), threads)


def _resident_kib(folder: Path) -> int:
    try:
        return _field(folder / "smaps_rollup", "Pss:")
    except FileNotFoundError:
        return _field(folder / "status", "VmRSS:")


def _field(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


def stream_bytes(node_folder: Path) -> dict[str, int]:
    """What each stream of a node has on disk, by its name."""
    sizes: dict[str, int] = {}
    for folder in node_folder.glob("mnesia/*/stream/*"):
        sizes[_stream_of(folder)] = sum(_size(each) for each in folder.glob("*.segment"))
    return sizes


def _stream_of(folder: Path) -> str:
    """RabbitMQ names the folder after virtual host, queue and time, with an underscore for every dot."""
    name = folder.name.removeprefix("fedqueue_fl_").rpartition("_")[0]
    return f"fl.jrn.{name.removeprefix('jrn_')}" if name.startswith("jrn_") else f"fl.{name}"


def _size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:  # the stream has just dropped it
        return 0


def growth_bytes(readings: Sequence[Reading]) -> float:
    """What memory grew by in the second half of the time, along the straight line that fits its readings best."""
    half = readings[len(readings) // 2 :]
    times = np.array([reading.at_seconds for reading in half])
    slope = np.polyfit(times, np.array([reading.resident_bytes for reading in half], dtype=float), 1)[0]
    return float(slope * (times[-1] - times[0]))


def not_flat(name: str, readings: Sequence[Reading]) -> Iterator[str]:
    """Why a process's readings are not flat: in the second half of the time its memory may grow by 5 % or 4 MiB, whichever is
    more, and its descriptors and threads may pass the most of the first half by 3 and 1."""
    before, after = readings[: len(readings) // 2], readings[len(readings) // 2 :]
    growth, size = growth_bytes(readings), float(np.median([reading.resident_bytes for reading in after]))
    if growth > max(ALLOWED_GROWTH_BYTES, ALLOWED_GROWTH * size):
        yield f"{name} grew by {growth / MIB:.1f} MiB in the second half of the time, to {size / MIB:.0f} MiB"
    descriptors = [max(reading.descriptors for reading in part) for part in (before, after)]
    if descriptors[1] > descriptors[0] + ALLOWED_DESCRIPTORS:
        yield f"{name} had {descriptors[1]} files open, {descriptors[0]} in the first half of the time"
    threads = [max(reading.threads for reading in part) for part in (before, after)]
    if threads[1] > threads[0] + ALLOWED_THREADS:
        yield f"{name} had {threads[1]} threads, {threads[0]} in the first half of the time"


def over_limit(largest_bytes: Mapping[str, int], limit_bytes: int, segment_bytes: int) -> Iterator[str]:
    """Streams that were larger than their limit and the segments that it does not count."""
    for name, size in largest_bytes.items():
        if size > limit_bytes + SEGMENTS_ABOVE_LIMIT * segment_bytes:
            yield f"{name} had {size / MIB:.1f} MiB on disk, its limit is {limit_bytes / MIB:.0f} MiB"
