"""Studies, questions and images: from the official files, or from phantoms in the same layout."""
