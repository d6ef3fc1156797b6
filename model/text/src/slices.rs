//! Where a long text may be cut so that the slices' ids, one after another, are the ids of the whole.
//!
//! The library keeps about a hundred bytes for every byte that it encodes at once, so 64 MiB would take gigabytes. A cut is
//! allowed only where it is provably without effect, for two kinds of tokenizer:
//!
//! 1. Words: the first pre-tokenizer is a regular expression made of known alternatives. None of them matches a letter and a
//!    following blank or stop together, none looks back, and none looks ahead from a letter; so a word ends there
//!    whatever surrounds it. Cut before the blank.
//! 2. Barred: no pre-tokenizer, white space as U+2581, and no vocabulary entry has U+2581 behind another character, so no
//!    merge crosses a blank between letters. Cut there; the blank itself comes back as the U+2581 that the
//!    tokenizer puts before every text.
//!
//! Added tokens that could lie across a cut, or that look at their neighbours, rule it out. Anything else is encoded whole.
use serde_json::Value;
use tokenizers::Tokenizer;

/// About this many bytes a slice.
const SLICE_BYTES: usize = 512 << 10;
const BLANK: char = '\u{2581}';

#[derive(Clone, Copy, PartialEq)]
pub enum SlicePlan {
    Whole,
    Words,
    Barred,
}

const SAFE_ALTERNATIVES: [&str; 31] = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?i:[sdmt]|ll|ve|re)",
    "'(?i:[sdmt]|ll|ve|re)",
    r"\p{L}+",
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}",
    r"\p{N}+",
    r" ?\p{N}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
    r"[\r\n]",
];

/// Letters whose category no table disputes.
fn is_plain_letter(character: char) -> bool {
    character.is_ascii_alphabetic()
        || matches!(character, 'а'..='я' | 'А'..='Я' | 'α'..='ω' | 'à'..='ö' | 'ø'..='ÿ')
        || matches!(character, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}')
        || matches!(character, '\u{ac00}'..='\u{d7a3}')
}

fn is_stop(character: char) -> bool {
    matches!(character, ' ' | '\n' | ',' | '.' | '\u{3001}' | '\u{3002}' | '\u{ff0c}')
}

fn split_alternatives(pattern: &str) -> Vec<&str> {
    let (mut depth, mut in_class, mut escaped, mut start) = (0, false, false, 0);
    let mut alternatives = Vec::new();
    for (at, character) in pattern.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth -= 1,
            '|' if !in_class && depth == 0 => {
                alternatives.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    alternatives.push(&pattern[start..]);
    alternatives
}

fn as_list<'a>(component: &'a Value, members: &str) -> Vec<&'a Value> {
    match (component["type"].as_str(), component[members].as_array()) {
        (None, _) => Vec::new(),
        (Some("Sequence"), Some(items)) => items.iter().collect(),
        _ => vec![component],
    }
}

fn is_safe_first(component: &Value) -> bool {
    match component["type"].as_str() {
        Some("ByteLevel") => component["add_prefix_space"] == false && component["use_regex"] != false,
        Some("Split") => {
            let pattern = component["pattern"]["Regex"].as_str().unwrap_or("");
            component["behavior"] == "Isolated"
                && component["invert"] == false
                && split_alternatives(pattern).iter().all(|alternative| SAFE_ALTERNATIVES.contains(alternative))
        }
        _ => false,
    }
}

/// What comes after the first sees one word at a time.
fn is_wordwise(component: &Value) -> bool {
    match component["type"].as_str() {
        Some("ByteLevel") => component["add_prefix_space"] == false,
        kind => matches!(kind, Some("Split" | "Digits")),
    }
}

fn composes_only(component: &&Value) -> bool {
    matches!(component["type"].as_str(), Some("NFC" | "NFD" | "NFKC" | "NFKD"))
}

/// The sentencepiece way of white space: a blank before every text, every blank U+2581, one word for all of it.
fn is_one_word_with_blanks(normalizers: &[&Value], pre_tokenizers: &[&Value]) -> bool {
    let blank = BLANK.to_string();
    match (normalizers, pre_tokenizers) {
        ([], [only]) => {
            only["type"] == "Metaspace"
                && only["replacement"] == blank.as_str()
                && only["split"] == false
                && matches!(only["prepend_scheme"].as_str(), Some("first" | "always"))
        }
        ([first, second], []) => {
            first["type"] == "Prepend"
                && first["prepend"] == blank.as_str()
                && second["type"] == "Replace"
                && second["pattern"]["String"] == " "
                && second["content"] == blank.as_str()
        }
        _ => false,
    }
}

impl SlicePlan {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let to_json = |component: Option<Value>| component.unwrap_or(Value::Null);
        let normalizer = to_json(tokenizer.get_normalizer().and_then(|n| serde_json::to_value(n).ok()));
        let pre_tokenizer = to_json(tokenizer.get_pre_tokenizer().and_then(|p| serde_json::to_value(p).ok()));
        let normalizers = as_list(&normalizer, "normalizers");
        let pre_tokenizers = as_list(&pre_tokenizer, "pretokenizers");

        let added: Vec<_> = tokenizer.get_added_tokens_decoder().into_values().collect();
        let crosses = |content: &str| {
            content.chars().zip(content.chars().skip(1)).any(|(left, right)| is_plain_letter(left) && is_stop(right))
        };
        let added_is_safe = added.iter().all(|token| {
            !token.single_word
                && !crosses(&token.content)
                && !(token.rstrip && token.content.ends_with(is_plain_letter))
        });
        if !added_is_safe {
            return SlicePlan::Whole;
        }
        if let Some((first, rest)) = pre_tokenizers.split_first() {
            if is_safe_first(first) && rest.iter().all(|p| is_wordwise(p)) && normalizers.iter().all(composes_only) {
                return SlicePlan::Words;
            }
        }
        let no_letter_first = added.iter().all(|token| !token.content.starts_with(is_plain_letter));
        if no_letter_first && is_one_word_with_blanks(&normalizers, &pre_tokenizers) && blanks_are_barriers(tokenizer) {
            return SlicePlan::Barred;
        }
        SlicePlan::Whole
    }

    /// The slices of a text. A text that has no safe cut is one slice.
    pub fn cut<'a>(self, text: &'a str) -> Vec<&'a str> {
        let mut slices = Vec::new();
        let mut rest = text;
        while self != SlicePlan::Whole && rest.len() > 2 * SLICE_BYTES {
            let Some((end, skipped)) = self.next_cut(rest) else { break };
            slices.push(&rest[..end]);
            rest = &rest[end + skipped..];
        }
        slices.push(rest);
        slices
    }

    /// The first safe cut after SLICE_BYTES: where it is, and how many bytes the tokenizer will put back by itself.
    fn next_cut(self, text: &str) -> Option<(usize, usize)> {
        let mut from = SLICE_BYTES;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let mut left = '\0';
        let mut characters = text[from..].char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            let next_is_letter = characters.peek().is_some_and(|(_, next)| is_plain_letter(*next));
            if is_plain_letter(left) {
                match self {
                    SlicePlan::Words if is_stop(character) => return Some((from + at, 0)),
                    SlicePlan::Barred if character == ' ' && next_is_letter => return Some((from + at, 1)),
                    _ => {}
                }
            }
            left = character;
        }
        None
    }
}

fn blanks_are_barriers(tokenizer: &Tokenizer) -> bool {
    let is_bpe = matches!(tokenizer.get_model(), tokenizers::ModelWrapper::BPE(_));
    is_bpe
        && tokenizer.get_vocab(false).keys().all(|entry| {
            entry.chars().zip(entry.chars().skip(1)).all(|(left, right)| right != BLANK || left == BLANK)
        })
}
