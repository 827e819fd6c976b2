"""Where and how weights are held (an accelerator, the host's memory, disk; factors), and how they come in time."""
