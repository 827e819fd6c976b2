"""What came out of a study: verdicts, exports, model cards, plots, reports. Evaluates nothing."""
