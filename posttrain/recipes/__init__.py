"""Recipes: whole pipelines of several methods, ordinary functions over folders, and the page that reports on them."""
