"""What a study costs as it grows: CPU seconds and peak memory of each piece of work, in a process of its own."""
