"""`python -m salver` is `salver`."""

from salver.cli import main

if __name__ == "__main__":
    main()
