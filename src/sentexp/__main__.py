"""`python -m sentexp` is the `sentexp` command."""

from sentexp.cli import main

if __name__ == "__main__":
    main()
