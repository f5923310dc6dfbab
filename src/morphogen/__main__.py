"""`python -m morphogen`: the command line, for `torchrun -m morphogen` and `accelerate launch -m morphogen`."""

from morphogen.cli.main import main

if __name__ == "__main__":
    main()
