"""The network: websockets, HTTP, S3, and how often a provider may be asked."""
