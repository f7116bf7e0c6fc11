"""Reading TensorBoard's event files: records of length, checksum, data, checksum."""

import struct
from pathlib import Path
from typing import List

from tensorboardX.proto.event_pb2 import Event


def read_events(folder: Path) -> List[Event]:
    """All events in a folder's files, each file's first (its version) left out."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, start = path.read_bytes(), 0
        read = []
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event()
            event.ParseFromString(data[start + 12 : start + 12 + length])
            read.append(event)
            start += 12 + length + 4
        assert read[0].file_version == "brain.Event:2"
        events += read[1:]
    return events
