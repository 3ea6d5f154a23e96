//! The text side against a real tokenizer of ten languages and against small ones built here.
