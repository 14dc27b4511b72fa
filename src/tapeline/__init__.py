"""Tapeline: market data from the providers' sockets to a stream and a lake, every event accounted for."""
