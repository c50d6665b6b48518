"""What holds for every test, here and in the programs that it starts."""

import os
import sys

import pytest

# Two tests run at a time on two cores: threads beside them would mostly wait for each other. One thread also adds up in
# one order, so that what a program writes can be compared bit for bit with what a test computes.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config):
    """Start the server of preloaded programs, once for all processes of a run."""
    import preloaded

    if preloaded.FOLDER not in os.environ:
        server = preloaded.Server()
        config.add_cleanup(server.close)
        use_own_cache(server.folder / "cache")
        if config.args_source is config.ArgsSource.TESTPATHS:
            # All tests: the processes that run them are forks as well. Each would import for 15 seconds.
            workers = getattr(config.option, "tx", None) or []
            config.option.tx = [f"popen//python={preloaded.python()}" for _ in workers]
    elif hasattr(config, "workerinput"):
        sys.executable = config.workerinput["interpreter"]


def use_own_cache(folder):
    """Keep the user's scores and calls out of the tests, and theirs out of the user's cache."""
    from musiccli.core.bundled_models import MODELS_FOLDER
    from musiccli.core.cache_folder import cache_folder, make_private_folder

    models = make_private_folder(cache_folder() / MODELS_FOLDER)
    os.environ["MUSIC_CACHE"] = str(folder)
    make_private_folder(folder)
    (folder / MODELS_FOLDER).symlink_to(models)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a process that runs tests which interpreter is no fork."""
    node.workerinput["interpreter"] = sys.executable


@pytest.fixture
def music(tmp_path):
    """`music` in processes of its own, with no network and an empty cache."""
    import preloaded
    from scripted import Music

    with Music(tmp_path, preloaded.command()) as music:
        yield music
