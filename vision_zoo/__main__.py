"""`python -m vision_zoo` is the command `vision-zoo`."""

import sys

from vision_zoo.cli import main

sys.exit(main())
