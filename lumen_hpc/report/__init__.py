"""Section 3 of the paper: tables 1 and 2 with their uncertainty, figures, and one page that shows a whole run."""
