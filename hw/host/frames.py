"""The frames of the byte link: one description for the RTL (:mod:`hw.host.framing`) and for host software.

A frame is a row of 32-bit words, little-endian: a header, ``words`` words of payload, and the CRC-32 (IEEE
802.3) of all bytes before it.

     31           16 15            8 7             0
    +---------------+---------------+---------------+
    |     words     |      tag      |     kind      |
    +---------------+---------------+---------------+

On the line it stands between two flag bytes 0x7E; inside, 0x7E and 0x7D are sent as 0x7D and the byte with
bit 5 inverted: the asynchronous HDLC framing of RFC 1662. So whatever happens to a frame, the next flag
begins anew.

The host asks, the device answers with the same tag; the host sends no other frame meanwhile. A frame that is
damaged on its way is dropped without a word. The host hears no answer and sends its frame again as it was: a
tag that came last has been carried out, and only the answer is given once more. So nothing is lost or done
twice.

    host to device    words           answer
    RESET             none            DONE, 1: payload words that a frame may have. Core and buffers are
                                      reset; weights stay. Always carried out, whatever the tag
    READ              1: offset       DONE, 1: the register
    WRITE             2: offset, value   DONE
    WEIGHTS           4 n: a packet of the weight stream, 4 words a beat, header beat first   DONE
    TOKEN             1 + n: TUSER, then the elements of a token, binary32   DONE
    FETCH             none            RESULT, n: the elements of the next token's result, once it is there;
                                      or PAGE, 1: expert [15:0] and slot [31:16] of a page that the core
                                      waits for, to be sent as WEIGHTS; DONE if nothing is there for a while

    REFUSED           1: an Error; the command had no effect
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "CRC_POLYNOMIAL",
    "CRC_RESIDUE",
    "ESCAPE",
    "ESCAPE_BIT",
    "FLAG",
    "Decoder",
    "Error",
    "Frame",
    "Kind",
    "encode",
]

WORD_BYTES = 4
MAX_WORDS = (1 << 16) - 1
FLAG, ESCAPE, ESCAPE_BIT = 0x7E, 0x7D, 0x20
CRC_POLYNOMIAL = 0xEDB88320  # CRC-32, least significant bit first; starts at all ones, sent inverted
CRC_RESIDUE = 0xDEBB20E3  # of the register, once the CRC itself has passed through


class Kind(IntEnum):
    """What a frame asks for or answers; answers have bit 7 set."""

    READ = 0x01
    WRITE = 0x02
    WEIGHTS = 0x03
    TOKEN = 0x04
    FETCH = 0x05
    RESET = 0x06
    DONE = 0x80
    REFUSED = 0x81
    RESULT = 0x82
    PAGE = 0x83


class Error(IntEnum):
    """Why a command was refused."""

    UNKNOWN_KIND = 1
    WRONG_LENGTH = 2  # not the number of words that the kind takes, or over the device's buffer
    BUS_ERROR = 3  # the register interface answered with an error: no such register, or it is read-only
    BUSY = 4  # the token buffer still holds a token: fetch results first


@dataclass(frozen=True)
class Frame:
    """``kind`` is a plain integer, as a device may be sent kinds that it does not know."""

    kind: int
    tag: int
    words: tuple[int, ...] = ()


def encode(kind: int, tag: int, words: Sequence[int] = ()) -> bytes:
    """The bytes of a frame, flags included.

    Raises
    ------
    ValueError : a field does not fit its bits
    """
    if not (0 <= kind < 256 and 0 <= tag < 256 and len(words) <= MAX_WORDS):
        raise ValueError(f"frame: kind {kind}, tag {tag}, {len(words)} words: a field is out of range")
    header = kind | tag << 8 | len(words) << 16
    plain = b"".join(int(word).to_bytes(WORD_BYTES, "little") for word in (header, *words))
    plain += zlib.crc32(plain).to_bytes(WORD_BYTES, "little")
    for special in (ESCAPE, FLAG):
        plain = plain.replace(bytes([special]), bytes([ESCAPE, special ^ ESCAPE_BIT]))
    return bytes([FLAG, *plain, FLAG])


class Decoder:
    """Bytes, as they come, to frames; ``damaged`` counts what was no frame."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take some bytes; returns the frames that they complete."""
        self._bytes.extend(data)
        *pieces, rest = self._bytes.split(bytes([FLAG]))
        self._bytes = rest
        frames = [self._frame(bytes(piece)) for piece in pieces if piece]
        self.damaged += frames.count(None)
        return [f for f in frames if f is not None]

    @staticmethod
    def _frame(plain: bytes) -> Frame | None:
        for special in (FLAG, ESCAPE):
            plain = plain.replace(bytes([ESCAPE, special ^ ESCAPE_BIT]), bytes([special]))
        body, crc = plain[:-WORD_BYTES], plain[-WORD_BYTES:]
        if not body or len(body) % WORD_BYTES or zlib.crc32(body) != int.from_bytes(crc, "little"):
            return None
        words = [int.from_bytes(body[i : i + WORD_BYTES], "little") for i in range(0, len(body), WORD_BYTES)]
        header, *payload = words
        if header >> 16 != len(payload):
            return None
        return Frame(header & 0xFF, header >> 8 & 0xFF, tuple(payload))
