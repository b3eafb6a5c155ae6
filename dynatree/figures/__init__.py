"""One file per figure: the TABLES it needs, the SECTION of the report it belongs to, `draw(tables)` -> Altair chart,
`caption(tables)` -> text from the data. Where params.yaml need not ask for what it shows, it says what that is: the
EXPERIMENT, with the keys (ONE) of it that it does not tell apart, or what it SHOWS besides (study/plugin_checks.py).

On a page, rows of a chart that have a `method` tell what else they know of `settings`, `value`, `low`, `high` and
`prompts`, and fade where another method is shown alone (shared/interactive.py).
"""
