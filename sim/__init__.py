"""Runs the generated Verilog: builds, harnesses, bus models and the engines that compute a MoE layer."""
