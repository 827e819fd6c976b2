"""What a study is: its file, its definition, the preflight, the stored study. Runs nothing, draws nothing."""
