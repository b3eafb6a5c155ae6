"""One file a figure: the TABLES it needs, the SECTION of the report it stands in, `draw(tables)` -> Altair chart,
`caption(tables)` -> text from the data.
"""
