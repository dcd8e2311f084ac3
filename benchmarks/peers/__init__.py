"""Other decoders, each behind the same few lines of JSON. They run in an environment of their own, without ours."""
