"""The exact weighted sum of a token's expert results, in int64 limbs, rounded once."""

from __future__ import annotations

import numpy as np

from sw_model.config import COMBINE_LIMB
from sw_model.formats import pack_float32

COMBINE_LIMBS = 4


class Combine:
    """Exact weighted sums of row results, int64 limbs of ``COMBINE_LIMB`` bits, lowest first.

    A limb's term has COMBINE_LIMB + WEIGHT_BITS + down_spread bits; :class:`HardwareConfig` bounds the last
    so that the sum over all slots stays in 63.
    """

    def __init__(self, tokens: int, hidden: int) -> None:
        self.limbs = np.zeros((COMBINE_LIMBS, tokens, hidden), dtype=np.int64)

    def add(self, tokens: np.ndarray, acc: np.ndarray, weight: np.ndarray, shift: np.ndarray) -> None:
        for i in range(COMBINE_LIMBS):
            limb = acc >> (COMBINE_LIMB * i)
            if i < COMBINE_LIMBS - 1:
                limb = limb & ((1 << COMBINE_LIMB) - 1)
            self.limbs[i, tokens] += (limb * weight[:, None]) << shift

    def result(self, lsb_exp: np.ndarray) -> np.ndarray:
        limbs = list(self.limbs)
        negative = self._carry(limbs)[-1] < 0
        limbs = self._carry([np.where(negative, -limb, limb) for limb in limbs])
        # Four limbs of 20 bits as 2**32 * high + low.
        high = (limbs[3] << 28) | (limbs[2] << 8) | (limbs[1] >> 12)
        low = ((limbs[1] & 0xFFF) << 20) | limbs[0]
        return pack_float32(negative, high, low, lsb_exp)

    @staticmethod
    def _carry(limbs: list[np.ndarray]) -> list[np.ndarray]:
        done, carry = [], np.zeros_like(limbs[0])
        for limb in limbs[:-1]:
            total = limb + carry
            done.append(total & ((1 << COMBINE_LIMB) - 1))
            carry = total >> COMBINE_LIMB
        return [*done, limbs[-1] + carry]
