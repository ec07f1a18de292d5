"""`python -m proxy` is `weir`."""

from proxy.cli import main

raise SystemExit(main())
