"""Retrying: the only backoff and the only retry loop in Tapeline."""
