"""``python -m attnbench`` is ``attnbench``."""

from attnbench.cli.main import main

if __name__ == "__main__":  # and not in the processes of a pool
    main()
