//! Hugging Face tokenizers and chat templates behind a C interface.
//!
//! Reading order: `abi` (what C calls), `tokenizer` (tokenizer.json and tokenizer_config.json to ids), `pieces` (the bytes
//! behind every id), `slices` (where a long text may be cut), `template` (the chat template), `python` and
//! `json_format` (what templates see as Python would show it), `limits` (what foreign bytes may cost).
#![deny(unsafe_op_in_unsafe_fn)]

mod abi;
mod json_format;
mod limits;
mod pieces;
mod python;
mod slices;
mod special_tokens;
mod template;
mod tokenizer;
