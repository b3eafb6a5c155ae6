"""One file per figure: the TABLES it needs, the SECTION of the report it belongs to, `draw(tables)` -> Altair chart,
`caption(tables)` -> text from the data.

On a page, rows of a chart that have a `method` tell what else they know of `settings`, `value`, `low`, `high` and
`prompts`, and fade where another method is shown alone (shared/interactive.py).
"""
