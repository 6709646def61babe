"""What a request cost and how it ended. Knows neither HTTP server nor provider connection; writes telemetry by one closing act."""
