"""The ingest stage reads the sockets and delivers their frames to the stream."""
