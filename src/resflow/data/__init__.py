"""From sources to arrays: fetch raw files, read their format, split, check, and feed batches.

    fetch     raw files, each verified, from the first source that has them (`sources`: the kinds there are)
    idx       the IDX format: read, check, write
    split     which images are for validation
    sheet     what is known of the prepared data: counts, mean, deviation, duplicates
    arrays    the prepared arrays on disk
    shards    a training split in Parquet files instead
    stream    which of their images stand in which batch
    batches   from arrays or a stream to what a network takes

Nothing is re-exported, so that a stage loads only what it uses.
"""
