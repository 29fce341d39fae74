"""Use the best cell of a study: choose it from the record, train it again, write it as plain files."""
