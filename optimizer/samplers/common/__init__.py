"""What several samplers use: the unit cube, units, histories, designs, Gaussian processes.

Nothing here proposes a trial by itself.
"""
