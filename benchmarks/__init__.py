"""Programs that measure. Each opens with the command that runs it."""
