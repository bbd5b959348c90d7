"""``python -m attnbench`` is ``attnbench``."""

from attnbench.cli import main

main()
