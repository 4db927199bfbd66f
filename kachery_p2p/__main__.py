"""`python -m kachery_p2p` is the command `kachery-p2p`, for where no entry point is on PATH."""

from kachery_p2p.cli.main import main

if __name__ == "__main__":
    main()
