"""Models and their folders: the decoder, Hugging Face format in and out, tokenizers, adapters and heads.

Nothing is imported here, so that the text side (`posttrain.chat`, `posttrain.data`) can use the tokenizer without
torch. Import the file you need: `from posttrain.models.tokenizers import Tokenizer`.
"""
