"""`python -m sentexp` is the `sentexp` command."""

import gc

from sentexp.cli.main import main

if __name__ == "__main__":
    try:
        main()
    finally:
        gc.freeze()  # Python looks for garbage once more when it ends, which takes long with these libraries loaded
