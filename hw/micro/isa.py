"""Instructions of the scalar processor, and the ports that it reaches the rest of the core by.

An instruction has 16 bits: five of operation, then either two of mode and nine of address, or a target.

    15      11 10   9 8            0         15      11 10             0
    +---------+------+--------------+        +---------+----------------+
    |   op    | mode |   address    |        |   op    |     target     |
    +---------+------+--------------+        +---------+----------------+

The operand M is a word of the data memory or a port (mode DIRECT), the one ``X`` behind it (INDEXED), or the
nine bits themselves (IMMEDIATE). Words have 64 bits. Registers: A, the accumulator (64); Q, a factor or
quotient (24); X, an index (9); C, what NRM shifted by; a stack of four return addresses.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ADDRESS_BITS",
    "FIRST_PORT",
    "MASK",
    "PROGRAM_BITS",
    "Mode",
    "Op",
    "Port",
]

ADDRESS_BITS = 9
PROGRAM_BITS = 11
WORD_BITS = 64
MASK = (1 << WORD_BITS) - 1
MUL_STEPS, DIV_STEPS = 24, 17
COUNT_BITS = 11  # of a shift


class Op(IntEnum):
    """Operations; :class:`hw.micro.processor.Processor` says how long they take."""

    LD = 0  # A = M
    ST = 1  # M = A
    ADD = 2  # A += M
    SUB = 3  # A -= M
    AND = 4
    OR = 5
    XOR = 6
    LDX = 7  # X = M
    LDQ = 8  # Q = M
    INX = 9  # X += 1
    SHL = 10  # A <<= M, a cycle a bit, or eight
    SHR = 11  # A >>= M, unsigned; remembers the last bit shifted out, and whether any before it was 1
    RND = 12  # A += 1 if what the last SHR shifted out is above a half, or a half and A odd
    NRM = 13  # A <<= C with the least C that sets its highest bit; A is not 0
    MUL = 14  # A = Q * M (24 steps)
    DIV = 15  # A < M: Q = floor(A * 2**17 / M) (17 steps)
    RET = 16
    JMP = 24
    CALL = 25
    JZ = 26  # if A is 0
    JNZ = 27
    JN = 28  # if A is negative
    JP = 29  # if not


class Mode(IntEnum):
    """Where an operand comes from."""

    DIRECT = 0
    INDEXED = 1
    IMMEDIATE = 2


class Port(IntEnum):
    """Places of the data memory that are doors to the rest of the core; R: read, W: written, S: it may
    stall."""

    FRAME = 480  # R S: header of the frame that stands, bit 32: its payload is all there
    FRAME_AT = 481  # W: word of its payload to be read next
    FRAME_WORD = 482  # R: that word; the next one is next
    FRAME_TAKE = 483  # W: make room for the next frame
    ANSWER = 484  # W S: header of a frame to send
    ANSWER_WORD = 485  # W S: a word of its payload
    ACT_AT = 486  # W: element of the activation buffer
    ACT = 487  # W: its code; the next one is next
    ACT_SHIFT = 488  # W: shift of the block that ACT_AT is in
    WORD = 489  # R W: memory row of the engine's next word
    SCALE = 490  # R W: scale entry of its next block
    SHAPE = 491  # W: blocks of a row [7:0], words of a block less one [9:8]
    GO = 492  # W: work out a row: first block of activations [7:0], add to the last sum [8]
    SUM = 493  # R S: the row's sum
    ROW_EXP = 494  # R: its exponent, as stored
    MEMORY_AT = 495  # W: memory row to be written next
    MEMORY = 496  # W: its 64 bits; the next one is next
    TABLE_AT = 497  # W: entry of the table of constants
    TABLE = 498  # R: that entry; the next one is next
    Q = 499  # R
    COUNT = 500  # R: C
    CYCLES = 502  # R: clock cycles, 48 bits
    LAMPS = 503  # W: busy [0], an error [1]
    READS = 504  # R: words that the engine has read, 24 bits
    SUMS = 505  # R: blocks that it has finished, 24 bits


FIRST_PORT = min(Port)
