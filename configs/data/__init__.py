"""What each published recipe trains on: one file a recipe, data sets by the names of their cards.

`sources(FOLDER)` gives the sources of every stage, which the recipes of `configs/` take. As a
configuration of its own (`--config=configs/data/sgqlm.py:FOLDER`) a file has these stages and
nothing else, for `sgqlm data show`.
"""
