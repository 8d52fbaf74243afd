"""The language stages (sections 2.2, 2.4, 2.5): rewriting, prediction questions, the fact check and the judge."""
