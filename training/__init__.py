"""Training, evaluation and export of the models that `asr_server` and `vision_zoo` serve."""
