"""What report pages share: HTML, figures, clips that play, intervals. It knows nothing of runs or questions."""
