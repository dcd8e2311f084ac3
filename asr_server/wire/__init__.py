"""Generated from protos/earsight/speech/v1 and protos/earsight/longrunning/v1 and protos/earsight/riva/v1 by scripts/generate_protos.py."""
