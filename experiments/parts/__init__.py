"""Large studies' parts: the cohorts, tables and verdicts of each. The launch files name them."""
