"""MLflow: the projection of a study's record, reading runs back, logging models."""
