"""`python -m actplane`."""

import sys

from actplane.cli import main

sys.exit(main())
