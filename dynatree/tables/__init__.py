"""Raw records to tidy tables: schemas, metrics, comparisons, intervals. Knows no model."""
