"""What can be known to be wrong with models, tasks and servers before a run; nothing is written or loaded here."""
