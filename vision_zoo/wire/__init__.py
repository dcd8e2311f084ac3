"""Generated from protos/earsight/vision/v1 by scripts/generate_protos.py."""
