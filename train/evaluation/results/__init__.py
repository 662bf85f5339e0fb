"""What an evaluation finds: figures counted from predictions, saved, judged again, compared between runs."""
