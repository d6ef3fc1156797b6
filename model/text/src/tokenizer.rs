//! tokenizer.json, completed by tokenizer_config.json the way transformers completes it.
use tokenizers::{AddedToken, Tokenizer};

use crate::abi::{Failure, Status};
use crate::pieces::Pieces;
use crate::slices::SlicePlan;
use crate::special_tokens::SpecialTokens;

pub struct TextTokenizer {
    inner: Tokenizer,
    pub pieces: Pieces,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    slices: SlicePlan,
    /// Ids that the post-processor puts before and after a text; None: it does something else.
    frame: Option<(Vec<u32>, Vec<u32>)>,
}

impl TextTokenizer {
    pub fn open(json: &[u8], special: &SpecialTokens) -> Result<Self, Failure> {
        let corrupt = |error: tokenizers::Error| Failure::new(Status::Corrupt, format!("tokenizer.json: {error}"));
        let mut inner = Tokenizer::from_bytes(json).map_err(corrupt)?;
        // Lengths are the server's business: a tokenizer file must neither cut nor pad a prompt.
        inner.with_truncation(None).map_err(corrupt)?;
        inner.with_padding(None);
        add_missing(&mut inner, special);
        let pieces = Pieces::of(&inner)?;
        let id = |name: &str| special.content(name).and_then(|content| inner.token_to_id(content));
        let (bos, eos, slices, frame) = (id("bos_token"), id("eos_token"), SlicePlan::of(&inner), frame_of(&inner));
        Ok(TextTokenizer { inner, pieces, bos, eos, slices, frame })
    }

    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Failure> {
        let failed = |error: tokenizers::Error| Failure::new(Status::Invalid, format!("the text has no tokens: {error}"));
        let slices = self.slices.cut(text);
        let (before, after) = match (&self.frame, slices.len()) {
            (Some(frame), 2..) => frame,
            _ => {
                let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(failed)?;
                return Ok(encoding.get_ids().to_vec());
            }
        };
        let mut ids = if add_special_tokens { before.clone() } else { Vec::new() };
        for slice in slices {
            ids.extend_from_slice(self.inner.encode_fast(slice, false).map_err(failed)?.get_ids());
        }
        if add_special_tokens {
            ids.extend(after);
        }
        Ok(ids)
    }
}

/// Tokens that tokenizer_config.json names and tokenizer.json lacks, or has as ordinary ones.
fn add_missing(inner: &mut Tokenizer, special: &SpecialTokens) {
    let known: Vec<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
    let missing: Vec<AddedToken> = special.added.iter().filter(|token| !known.contains(token)).cloned().collect();
    inner.add_tokens(&missing);

    // A name repeats a token whose flags are given elsewhere; those win.
    let flags_of = |token: &AddedToken| {
        let given = special.added.iter().chain(known.iter()).find(|other| other.content == token.content);
        given.cloned().unwrap_or_else(|| token.clone()).special(true)
    };
    let named = special.named.iter().map(|(_, token)| flags_of(token));
    let all: Vec<AddedToken> = named.chain(special.extra.iter().map(flags_of)).collect();
    inner.add_special_tokens(&all);
}

fn frame_of(inner: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let bare = inner.encode_fast("a", false).ok()?.get_ids().to_vec();
    let framed = inner.encode_fast("a", true).ok()?.get_ids().to_vec();
    let at = framed.windows(bare.len().max(1)).position(|window| window == bare)?;
    Some((framed[..at].to_vec(), framed[at + bare.len()..].to_vec()))
}
