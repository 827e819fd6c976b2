"""Tasks of the LM evaluation harness as tasks of ours."""
