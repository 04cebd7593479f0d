from __future__ import annotations

import sys

from grpo_fast.cli import main

sys.exit(main())
