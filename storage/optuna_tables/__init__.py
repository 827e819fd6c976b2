"""The one place that reads and writes Optuna's own tables directly."""
