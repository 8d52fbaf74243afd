"""What happened to the patients of a run: outcomes, laboratory values and stays, from MIMIC-IV's own tables."""
