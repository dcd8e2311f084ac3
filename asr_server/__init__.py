"""Streaming speech recognition: Deep Speech acoustic models, KenLM beam search and a gRPC server."""
