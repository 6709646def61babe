"""Where state lives between requests and workers: memory that all workers of a host share."""
