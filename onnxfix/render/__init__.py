"""How results are shown, one file for each form.

    text.py      for people: what is said, as blocks
    layout.py    the blocks, written as plain aligned text or, in a terminal, through rich
    diff.py      the changes of a run, node by node
    gate.py      the gate for people; sarif.py, junit.py and github.py the same for CI systems
    json.py      complete, for programs
    progress.py  what a long run is at, on a terminal's standard error
"""
