"""One door: ``python -m seqcirc_utils book``, and what else ``--help`` lists."""

import signal
import sys

from seqcirc_utils.commands import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends a run as Ctrl-C does
sys.exit(main(sys.argv[1:]))
