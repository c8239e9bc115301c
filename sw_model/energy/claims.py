"""The formulas behind ``docs/figures.md``: growth at equal products, silicon for weights, cost, carbon.

References: memory density, Yun et al., IEEE Solid-State Circuits Letters 8, doi:10.1109/LSSC.2025.3532788;
bandwidth of a GPU's memory, NVIDIA, H100 Tensor Core GPU data sheet (SXM5); carbon intensity of electricity,
Ember, Global Electricity Review 2024 (world, 2023); price of electricity, US Energy Information
Administration, industrial sector, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CARBON",
    "DENSITY",
    "HBM",
    "MODELS",
    "PRICE",
    "RETICLE",
    "Model",
    "growth",
    "routed_share",
    "silicon",
    "trillion",
]

DENSITY = 5.67  # Mbit of memory in a mm2 of macros, 5 nm, the densest digital one that we found published
RETICLE = 26 * 33  # mm2, the largest chip that is exposed at once
HBM = {"NVIDIA H100 80GB HBM3": 3.35e12}  # bytes a second, by the name that a GPU gives itself
PRICE = 0.0804  # US dollars a kWh
CARBON = 480.0  # grams of CO2 equivalent a kWh
JOULES = 3.6e6  # in a kWh
TRILLION = 1e12


@dataclass(frozen=True, kw_only=True)
class Model:
    """Parameters by their makers, in billions: all, and active for a token; experts and how many are used."""

    name: str
    total: float
    active: float
    experts: int
    top_k: int


MODELS = (
    Model(name="Mixtral 8x7B", total=46.7, active=12.9, experts=8, top_k=2),
    Model(name="OLMoE 1B-7B", total=6.9, active=1.3, experts=64, top_k=8),
    Model(name="Qwen3 30B-A3B", total=30.5, active=3.3, experts=128, top_k=8),
    Model(name="gpt-oss 120b", total=116.8, active=5.1, experts=128, top_k=4),
    Model(name="DeepSeek-V3", total=671, active=37, experts=256, top_k=8),
)


def growth(routed: float, used: float) -> float:
    """R = 1 / ((1 - f) + f k / N): how many times the parameters of a dense model with the same products a
    token; f the share of parameters in routed experts (``routed``), k / N the share of experts ``used``."""
    return 1 / ((1 - routed) + routed * used)


def routed_share(wanted: float, used: float) -> float:
    """f that gives R = ``wanted``; above 1: there is none."""
    return (1 - 1 / wanted) / (1 - used)


def silicon(gigabytes: float, density: float = DENSITY) -> float:
    """mm2 of macros that hold so many gigabytes (10**9 bytes)."""
    return gigabytes * 8e3 / density


def trillion(nanojoules: float) -> tuple[float, float, float]:
    """kWh, US dollars of electricity and tonnes of CO2 for 10**12 tokens of so many nJ."""
    kwh = nanojoules * 1e-9 * TRILLION / JOULES
    return kwh, kwh * PRICE, kwh * CARBON / 1e6
