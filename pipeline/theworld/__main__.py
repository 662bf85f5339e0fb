"""`python -m theworld` is the command `theworld`."""

from theworld.pipeline.cli import main

if __name__ == "__main__":
    main()
