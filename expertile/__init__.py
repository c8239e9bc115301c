"""The front door: the command ``expertile`` and its reports. It uses sim, hw and sw_model."""
