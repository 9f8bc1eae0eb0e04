import concurrent.futures
import functools
import multiprocessing

import pytest

from sgqlm import config
from sgqlm.scenes import questions, world

NUM_SCENES = 1500


@pytest.fixture(scope="session")
def many():
    """1500 scenes with their questions, made by a process in which annotations are unchecked."""
    context = multiprocessing.get_context("spawn")
    make = functools.partial(world.make_scene, config.SceneConfig(), "train")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        scenes = list(pool.map(make, range(NUM_SCENES), chunksize=250))
        asked = list(pool.map(functools.partial(questions.ask_all, seed=0), scenes, chunksize=250))
    return scenes, asked
