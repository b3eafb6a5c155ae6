"""One file a figure: the TABLES it needs, `draw(tables)` -> Altair chart, `caption(tables)` -> text from the data."""
