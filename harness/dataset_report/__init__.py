"""Report on a data set of images and propose a study for it; nothing is trained."""
