"""A blind pairwise study of two folders of videos, as in Table 3 of arXiv 2605.30116."""
