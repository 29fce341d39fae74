"""From a study file to its recorded trials: plan, preflight, record, coordinator, executors."""
