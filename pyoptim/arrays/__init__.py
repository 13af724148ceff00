"""Arrays in the processor's memory and in a GPU's: allocation, views, checks."""
