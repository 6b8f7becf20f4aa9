"""Why a vision-language model says what is not there: one page, one JSON, the arrays behind them.

    Vlm, samples ──▶ asking   the questions as they are, with a blank picture, with another   → records
                 ──▶ heads    attention of object words, by layer and head, against masks      → HeadReading
                 ──▶ lens     what the image tokens say before a word is written               → confidences
                 ──▶ captions the words of captions that it writes by itself                    → CaptionReading
                 ──▶ analysis.similarity   matching against mismatched captions                 → Similarity
    examination: all five of one model ──▶ figures: estimates with intervals ──▶ page

- `asking.py`, `heads.py`, `lens.py`, `captions.py` run a model and know of each other at most the lens
- `figures.py`: pure functions from what they found to figures; `drawings.py` and `page.py` show them
- `run.py`: `diagnose`, with names, files and progress

Which family a model is of, nobody here knows: `agevlm.vlms` is asked.
"""
