"""The vocabulary of studies, trials and results, and what all commands share."""
