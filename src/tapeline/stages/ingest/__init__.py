"""The stage with the sockets, and what carries its frames to the stream."""
