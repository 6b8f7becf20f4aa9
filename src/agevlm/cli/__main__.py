"""`python -m agevlm.cli`: the same as `agevlm`."""

from agevlm.cli import main

if __name__ == "__main__":
    main()
