"""Measuring a parser: small models, what became of each, and the limits that follow.

    models.py    one node each, and copies that differ in a single thing
    standard.py  the node tests that come with onnx
    ask.py       models to the parser at hand, outcomes back; a crash is an outcome
    derive.py    from outcomes to limits
    assemble.py  limits, derived and curated, to a matrix file; how well it explains the outcomes
    run.py       the whole, here or by a bundle carried to a board
    board.py     the script that runs there: Python 3.6, standard library and TensorRT only
"""
