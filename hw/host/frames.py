"""The frames of the byte link: one description for the RTL (:mod:`hw.host.framing`) and for host software.

A frame is a row of 32-bit words, little-endian. The first is the header:

     31           16 15            8 7             0
    +---------------+---------------+---------------+
    |     words     |      tag      |     kind      |     words: how many follow
    +---------------+---------------+---------------+

The host numbers its frames with ``tag``; every one is answered by one frame with the same tag. It waits for
the answer before it sends the next frame, except that after a TOKEN other kinds may follow at once.

    host to device    words           answer
    READ              1: offset       DONE, 1: the register
    WRITE             2: offset, value   DONE
    WEIGHTS           4 n: a packet of the weight stream, 4 words a beat, header beat first   DONE
    TOKEN             n: the elements of a token, binary32   DONE once the token buffer is free again

    device to host
    DONE              as above
    REFUSED           1: an Error; the command had no effect
    RESULT            n: the elements of a token's result, tag 0; comes unasked, in the order of the tokens
    PAGE              1: expert [15:0] and its slot [31:16], tag 0; unasked: the core waits for this page
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Decoder", "Error", "Frame", "Kind", "encode"]

WORD_BYTES = 4
MAX_WORDS = (1 << 16) - 1


class Kind(IntEnum):
    """What a frame asks for or answers; answers have bit 7 set."""

    READ = 0x01
    WRITE = 0x02
    WEIGHTS = 0x03
    TOKEN = 0x04
    DONE = 0x80
    REFUSED = 0x81
    RESULT = 0x82
    PAGE = 0x83


class Error(IntEnum):
    """Why a command was refused."""

    UNKNOWN_KIND = 1
    WRONG_LENGTH = 2  # not the number of words that the kind takes, or over the device's buffer
    BUS_ERROR = 3  # the register interface answered with an error: no such register, or it is read-only
    BUSY = 4  # the token buffer still holds a token: its DONE is yet to come


@dataclass(frozen=True)
class Frame:
    """``kind`` is a plain integer, as a device may be sent kinds that it does not know."""

    kind: int
    tag: int
    words: tuple[int, ...] = ()


def encode(kind: int, tag: int, words: Sequence[int] = ()) -> bytes:
    """The bytes of a frame.

    Raises
    ------
    ValueError : a field does not fit its bits
    """
    if not (0 <= kind < 256 and 0 <= tag < 256 and len(words) <= MAX_WORDS):
        raise ValueError(f"frame: kind {kind}, tag {tag}, {len(words)} words: a field is out of range")
    header = kind | tag << 8 | len(words) << 16
    return b"".join(int(word).to_bytes(WORD_BYTES, "little") for word in (header, *words))


class Decoder:
    """Bytes, as they come, to frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: Iterable[int]) -> list[Frame]:
        """Take some bytes; returns the frames that they complete."""
        self._bytes.extend(data)
        frames = []
        while len(self._bytes) >= WORD_BYTES:
            kind, tag = self._bytes[:2]
            size = WORD_BYTES * (1 + int.from_bytes(self._bytes[2:4], "little"))
            if len(self._bytes) < size:
                break
            payload = self._bytes[WORD_BYTES:size]
            words = (
                int.from_bytes(payload[i : i + WORD_BYTES], "little")
                for i in range(0, len(payload), WORD_BYTES)
            )
            frames.append(Frame(kind, tag, tuple(words)))
            del self._bytes[:size]
        return frames
