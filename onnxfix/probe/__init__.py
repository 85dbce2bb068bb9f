"""Measuring a parser: small models, what became of each, and the limits that follow.

    standard.py  the node tests that come with onnx
    models.py    models that differ from an accepted one in a single thing
    ask.py       models to the parser at hand, outcomes back; a crash is an outcome
    derive.py    from outcomes to the limits of a matrix file
    bundle.py    a folder to carry to a board, and what comes back from there
    board.py     the script that runs there: Python 3.6, standard library and tensorrt only
"""
