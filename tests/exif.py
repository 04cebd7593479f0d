"""Tags that a photograph may carry and PIL cannot write."""

import struct


def malformed_exif(orientation: int) -> bytes:
    """A rotation, and beside it an artist who is a number."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0), struct.pack("<HHIf", 0x013B, 11, 1, 0.5)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
