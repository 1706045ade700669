"""Small models that pages sample and train: how their weights are made, and how they reach the site.

`adder.py` makes the one that section 23 trains in the page; `export.py` writes what `book/widgets/lm.js` reads.
"""
