"""Reports on data sets, and studies that suit them. Nothing is trained."""
