"""The report of a study: tables, comparisons, figures."""
