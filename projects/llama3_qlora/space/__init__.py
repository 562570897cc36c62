"""The chat model as a Space: a page that streams, and the folder that the Hub wants.

    python -m projects.llama3_qlora.space build --to build/space
    python -m projects.llama3_qlora.space upload OWNER/NAME

The first command makes the folder (`cd build/space && python app.py` serves it here);
the second sends it to the Hub and needs a token with write access in HF_TOKEN.
"""
