"""Reports on data sets of images, and studies that suit them. Nothing is trained."""
