"""Use of the best cell of a study: choosing it, training it again, and exporting it as plain files."""
