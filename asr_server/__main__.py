"""`python -m asr_server` is `asr-server`."""

import sys

from asr_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
