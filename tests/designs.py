"""Configurations that several tests share."""

from sw_model.config import HardwareConfig

#: Small, and for synthesis: its memories are deep enough for block RAM.
SMALL = HardwareConfig(
    name="small",
    tiles=1,
    words=1024,
    scales=512,
    max_hidden=32,
    max_intermediate=32,
    max_experts=2,
    max_top_k=1,
)
