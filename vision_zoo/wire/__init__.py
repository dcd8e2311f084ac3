"""Generated from protos/earsight/vision/v1 and protos/earsight/annotation/v1 and protos/inference by scripts/generate_protos.py."""
