"""Answer questions with a trained run, and measure the answers: metrics, statistics, policies, report pages.

It reads run folders and knows nothing of training; comparing several trainings is the task of `study`.
"""
