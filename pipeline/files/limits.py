"""Limits on what reading a file from outside may take: bytes, rows, depth, memory, time.

Images and videos have limits of their own, beside the rules that decode them (images/decode.py, media/video.py).
"""

from __future__ import annotations

MAX_ROW_BYTES = 2**24
"""One row of a list, one element of a JSON array, the values of one row of a table without its images: 16 MiB. The
largest good rows hold an image in base64. As Python objects JSON takes up to 36 times its bytes: 0.6 GB."""
MAX_CSV_ROW_CHARACTERS = 2**25
"""One row of a CSV, which may hold two values of the size above."""
MAX_SKIPPED_BYTES = 2**30
"""What is read of one line that is too long, to find the next one. Beyond 1 GiB it is no list of lines."""
MAX_BAD_ROWS = 100_000
"""Inputs of one place that are refused one by one, each by its name: 1 KB of memory each. The rest are counted, in one
failure for each list, table, tar or folder, and good ones between them are still used."""
MAX_COLUMNS = 2**14
"""Names of columns in one list or table. The widest tables in use have a few thousand."""
MAX_ROWS = 2**24
"""Inputs of one place, in all its lists, tables and tars: 16.8 million; the largest list we know has 12.8 million."""
MAX_ROW_INPUTS = 2**16
"""Inputs that one row of a list or table names or holds. Documents have hundreds, lists of frames thousands."""
MAX_TEXTS_BYTES = 2**31
"""The names and prompts of those inputs together."""

MAX_CONFIG_BYTES = 2**22
"""A config of a model, of an adapter, of a run: 4 MiB. The largest in use have 100 KB."""
MAX_RESULT_BYTES = 2**27
"""A file of results, such as evaluation.json: 128 MiB. An answer takes up to 1 KB, and a split has up to 100,000."""
MAX_TOKENIZER_BYTES = 2**26
"""tokenizer.json, a SentencePiece model, an index of weights: 64 MiB. Gemma-3's tokenizer.json has 33 MB."""
MAX_WEIGHT_BYTES = 2**40
"""One safetensors or .gguf file: 1 TiB."""
MAX_WEIGHT_HEADER_BYTES = 100 * 10**6
"""The header of a safetensors file; the library's own limit."""
MAX_GGUF_HEADER_BYTES = 2**28
"""The header of a GGUF file, which holds the tokenizer: 256 MiB. Gemma-3's has about 15 MB."""
MAX_GGUF_ENTRIES = 2**16
"""Settings, and tensors, in a GGUF file."""
MAX_GGUF_STRINGS = 2**21
"""The tokens of a GGUF file's tokenizer; Gemma-3 has 262,144."""
MAX_LAYERS = 1000
"""Layers, blocks, heads or experts that a model's config may state."""
MAX_MODEL_NUMBER = 10**8
"""Any other whole number in a model's config."""
MAX_MODEL_LIST = 4096
"""The length of a list in a model's config."""
MAX_SCHEDULER_NUMBER = 10**5
"""A number in a scheduler's config: tables of so many noise levels are made. Those in use have 1,000."""
MAX_PICTURE_NUMBER = 4096
"""A number in the config of what prepares pictures, which are resized to it. CLIP's are 224, Gemma-3's 896."""
MAX_MODULES = 2**14
"""Layers and their parts, which a config multiplies: each takes 0.1 ms and 10 KB even where it has no weights. Gemma-3
27B and Wan 2.1 14B have about 2,000."""
MAX_BUFFER_NUMBERS = 2**26
"""Numbers that a model computes by itself when it is made, such as tables of positions: 67 million."""
MAX_TEXT_GROWTH = 256
"""How many times longer a tokenizer may make a text. T5's tables make up to 33 bytes of a letter."""
MAX_ADDED_TOKENS = 4096
"""Tokens that a tokenizer may put around each text. Those that are known put two or three."""
MAX_TOKEN_LETTERS = 2**16
"""Of one token in a tokenizer's vocabulary. Those that are known have up to a few hundred."""

MAX_JSON_VALUES = 2**24
"""Values in one JSON file, of which each takes up to 100 bytes of memory: 16.8 million. The largest good files, results
of 100,000 answers and Gemma-3's tokenizer.json, have 5 million."""
MAX_JSON_BYTES = 2**26
"""A small JSON file beside data, such as state.json of a data set: the largest, of 100,000 files, have 5 MB."""
MAX_TURNS = 100
"""Answers in one conversation. Each is asked with all earlier turns in front of it, so the tokens to learn from grow
with the square; LLaVA's longest have 30."""
MAX_QUESTIONS = 2**22
"""Questions of one file or folder, wrong rows included: 4.2 million, each of 1 KB of memory. LLaVA's mix of 665,000
conversations has 3.3 million."""
MAX_QUESTION_TEXTS = 2**31
"""Letters of all questions of one file or folder, their choices and answers included: 2 billion. LLaVA's mix has one
billion."""
MAX_CHOICES = 1000
"""Choices of one question; each is a pass through the language model."""
MAX_FIELDS = 1000
"""Fields of one question, those that nobody reads included: each is compared with ours, which it may misspell."""
MAX_PROBLEM = 1000
"""Letters of what is said about one wrong row, which may quote all of it."""
MAX_QUESTION_FILES = 100_000
"""Tables in one folder of questions; results, and pictures, in one of VPCT, which has a hundred of each."""

MAX_TAR_HEADER_BYTES = 2**20
"""One extended header of a tar; names are a few hundred bytes."""
MAX_TAR_HEADERS = 16
"""Extended headers in front of one member of a tar; writers use up to three."""

TABLE_MEMORY_BYTES = 2**31
"""What the process that reads Parquet and Arrow files may allocate for one file."""
TABLE_CPU_S = 20
"""CPU time of that process from one answer to the next. A batch takes milliseconds."""
TABLE_WALL_S = 50.0
"""Time from one answer to the next, in all: a disk on a network may be slow."""
TABLE_FREE_BYTES = 2**30
"""What any table may unpack to."""
TABLE_EXPANSION = 100
"""What a table may unpack to beyond that, times the bytes it has on disk. Tables of images unpack to about their own
size; with one image in many rows, to ten times of it."""
TABLE_BATCH_BYTES = 2**24
"""What is unpacked at a time, if a row is not larger."""
TABLE_BATCH_ROWS = 2**14
"""Rows unpacked at a time, where rows are small."""
TABLE_KEPT_BYTES = 2**28
"""Cells that are kept unpacked for the next inputs."""
MAX_TABLE_SCHEMA_BYTES = 2**26
"""The footer of a Parquet file, which is parsed as a whole: 64 MiB. A file of 100,000 row groups has 20 MB."""
MAX_TABLE_NAMES_BYTES = 2**20
"""The names of all columns of a table together."""
MAX_CELL_BYTES = 2**30
"""One image or video in a table, as one in a file."""

MAX_HUB_BYTES = 2**40
"""All files of a data set on the Hub: 1 TiB. `datasets` downloads them and writes them again as Arrow files."""
MAX_HUB_FILES = 100_000
"""Their number; the Hub itself advises against more."""
HUB_NOTE_BYTES = 2**30
"""From 1 GiB on the size is said before the download begins."""
