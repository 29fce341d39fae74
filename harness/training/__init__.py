"""Training of one trial: networks in groups, the loop, its checks, its memory and its clock."""
