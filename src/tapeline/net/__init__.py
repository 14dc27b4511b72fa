"""The network: websockets, HTTP, S3 and the rate limits of providers."""
