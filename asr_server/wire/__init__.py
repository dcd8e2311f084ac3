"""Generated from protos/earsight/speech/v1 by scripts/generate_protos.py."""
