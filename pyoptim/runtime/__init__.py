"""The lowest floor: the choice of a backend, threads, files, dtypes, checks of numbers."""
