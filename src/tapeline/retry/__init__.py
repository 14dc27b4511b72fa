"""The one backoff and the one loop that retries."""
