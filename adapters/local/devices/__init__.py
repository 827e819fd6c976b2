"""Which devices a live model runs on, and how it is spread over several, the host's memory and disk."""
