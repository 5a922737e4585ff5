"""Programs that are measured, or that send while a worker is. Each prints its figures as JSON in its last line."""
