"""One file per figure: the TABLES it needs, the SECTION of the report it belongs to, `draw(tables)` -> Altair chart,
`caption(tables)` -> text from the data.
"""
