"""The specification that runs: formats, the golden MoE layer, checkpoint readers, quantiser, compiler."""
