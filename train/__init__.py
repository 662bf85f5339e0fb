"""Stage two: a store and questions in, a trained reader and its answers out."""
