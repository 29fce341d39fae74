"""How is the best of a study used? Chosen from what is recorded, trained again, written as plain files."""
