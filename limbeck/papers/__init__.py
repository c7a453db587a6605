"""One file per published system, named after the method. Each defines `paper`, a `limbeck.experiments.Paper`.

Files are found by name and imported only when they are shown or run; `limbeck papers list` imports none of them.
"""
