"""The ``lightx2v-sgmd`` command, which is also ``python -m lightx2v_sgmd``."""

from lightx2v_sgmd.system.interruption import leave_interrupted


def main() -> None:
    """Runs the command line and exits with its code; Ctrl-C ends it in one line at any moment."""
    try:
        from lightx2v_sgmd.cli.main import main as run
    except KeyboardInterrupt:
        leave_interrupted()
    run()


if __name__ == "__main__":
    main()
