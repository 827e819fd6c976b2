"""Running a study: in this process, by workers, on Ray, by an outside harness; scoring its report items."""
