"""The built book in a browser, page by page: `python -m book.check posttrain/site` (make book-check).

Each page is opened from the server of `posttrain book`, with every other host out of reach: light and dark on a desk,
and on a phone of 390 px. Asked of each: nothing wrong for axe-core, no request that fails or leaves, no error in the
console, no sideways scroll, at most 60 kB without fonts and data, a tab order that is the order of the page, widgets
that draw in 4 ms, a first paint of a section within a second, and paper. Screenshots and PDFs are left in build/book-
check to look at.
"""
