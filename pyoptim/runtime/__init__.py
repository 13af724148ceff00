"""What everything else stands on: the choice of a backend, threads, files, dtypes, checks of numbers."""
