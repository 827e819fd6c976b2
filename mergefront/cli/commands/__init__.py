"""The commands, grouped by what they act on. They read arguments and print; the work is done elsewhere."""
