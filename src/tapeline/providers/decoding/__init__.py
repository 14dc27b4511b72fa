"""Decoding of frames: the parts that the decoders of several providers share."""
