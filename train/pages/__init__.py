"""What report pages share: HTML, plots, figures with intervals. It knows nothing of runs or questions."""
