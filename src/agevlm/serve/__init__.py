"""Models behind an OpenAI-compatible API, and a page that shows where they look.

    HTTP ──▶ limits ──▶ conversation ──▶ scheduler ──▶ decoder ──▶ model
     │       body, key,   text, pictures   one thread a   rows join     one step for
     │       time         (pictures.py)    model          and leave     all rows
     ▼                                     (engine.py)    between steps
    app.py ◀── pieces of text, log-probabilities, maps of words ◀──┘

- `limits.py`, `guard.py`, `origins.py`: how much a client may ask for, and who; the ASGI layer that holds it to that
- `protocol.py`, `bodies.py`, `errors.py`: what goes over the wire, in OpenAI's form, and how it is read
- `pictures.py`, `memories.py`: from a data URL to a picture that the model has seen, kept for further questions
- `conversations.py`: messages to the tokens of a prompt
- `engine.py`: which request runs when; `decoding.py`: rows of the same step; `sampling.py`: the next token of a row;
  `texts.py`: tokens to text as it comes
- `looking.py`: maps of words, overlays, probabilities of given answers
- `front.py`, `replicas.py`: many of such servers behind one address, on Ray
- `app.py`: the routes; `server.py`: a socket, signals; `page/`: the page at `/`, plain modules; `terminal.py`: chat

What only knows tensors (`decoding.py`, `sampling.py`) never hears of HTTP; what speaks HTTP never sees a tensor.
Needs the extra `serve` (FastAPI, uvicorn) where it speaks HTTP, and nowhere else.
"""
