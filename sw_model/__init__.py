"""The specification that runs: number formats, the golden MoE layer, quantiser, compiler and training."""
