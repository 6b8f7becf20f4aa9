"""The benchmarks that papers quote, each by its own prompt and its own rule of scoring.

    a directory or a hub id ──▶ files.py: tables, pictures ──▶ NAME.py: rows → questions
                                                                   │  protocol: prompt, parse, figures
    any model (vlms.Vlm) ──────▶ run.py: asks, resumes, shares ◀───┤
                                        │                          │
                                        └──▶ predictions.jsonl ──▶ marks ──▶ measures.py: figures, intervals

**What a benchmark must say** (one small file each): its facts (paper, source, licence), the schemas that it ships in
and how their rows become questions, and for each protocol the prompt, how an answer is read, and which figures are
made of the marks. **What the runner never knows**: a benchmark by name.

A protocol is somebody's way to ask and to score: that of the benchmark's own repository (`official`), of lmms-eval, of
VLMEvalKit. The same answers give other figures under another protocol, so a figure is never given without its name.

- `benchmark.py`: the words: `Question`, `Protocol`, `Benchmark`, `Marked`
- `files.py`: Parquet, JSON, JSON lines, TSV and CSV as tables; pictures found when they are asked for
- `answers.py`: yes or no, letters, as each protocol reads them; `measures.py`: shares and what is made of them
- `pope.py`, `cv_bench.py`, `mmvp.py`, `realworldqa.py`, `mmstar.py`, `hallusionbench.py`, `amber.py`, `chair.py`
- `table.py`: names → benchmarks; `run.py`: the runner; `store.py`: its answers
  on disk; `outcome.py`: what it writes
"""
