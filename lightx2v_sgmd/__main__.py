"""``python -m lightx2v_sgmd``: the same as the ``lightx2v-sgmd`` command."""

from lightx2v_sgmd.cli.main import main

if __name__ == "__main__":
    main()
