"""Host software: one way to use an accelerator, whatever it is connected by."""
