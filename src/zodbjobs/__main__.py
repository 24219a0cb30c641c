"""``python -m zodbjobs``: the command, where no script was installed."""

import sys

from zodbjobs.cli.main import main

sys.exit(main())
