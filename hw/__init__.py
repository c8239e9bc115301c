"""The generator: one Amaranth component a file, from activation quantiser to AXI top."""
