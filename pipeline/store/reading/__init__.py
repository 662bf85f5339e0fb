"""Reading rows of a store: from files, from objects of a bucket, and as objects of other libraries."""
