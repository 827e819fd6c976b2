"""Where weights are held (an accelerator, the host's memory, disk), and how they come from there in time."""
