"""One HTML page with the figures of all results: accuracy, speed, memory and losses."""
