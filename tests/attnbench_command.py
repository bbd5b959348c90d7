"""``attnbench`` as a script, for tests that start it in a process of its own."""

from attnbench.cli.main import main

if __name__ == "__main__":
    main()
