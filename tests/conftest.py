"""What holds for every test, here and in the programs that it starts."""

import os

import pytest

# Two tests run at a time on two cores: threads beside them would mostly wait for each other. One thread also adds up in
# one order, so that what a program writes can be compared bit for bit with what a test computes.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config):
    """Start the server of preloaded programs, once for all processes of a run."""
    from preloaded import FOLDER, Server

    if FOLDER not in os.environ:
        config.add_cleanup(Server().close)


@pytest.fixture
def music(tmp_path):
    """`music` in processes of its own, with no network and an empty cache."""
    import preloaded
    from scripted import Music

    with Music(tmp_path, preloaded.command()) as music:
        yield music
