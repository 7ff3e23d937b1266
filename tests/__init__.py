"""Tests mirror the source; see CONTRIBUTING."""

from lightx2v_sgmd.system.optional_packages import prepare_libraries

# Tests import diffusers at their top; a broken optional package must not stop them either.
prepare_libraries()
