"""Everything that listens on a port: the merge service, the study server, the dashboard."""
