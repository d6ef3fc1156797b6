//! The bytes behind every id: what a decoder makes of a token by itself, and the little that depends on its place.
//!
//! With this table decoding is concatenation, so a stream decodes in constant time a token and a stream's pieces are the
//! text of all ids by construction. The decoders of the supported families fit; another one is refused by name.
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::abi::{Failure, Status};

/// Ids are indices of tables here, so a file must not claim arbitrary ones.
const ID_MAX: u32 = 1 << 24;

pub const FLAG_PRESENT: u8 = 1;
pub const FLAG_SPECIAL: u8 = 2;

#[derive(Default)]
pub struct Table {
    /// bytes[offsets[id]..offsets[id + 1]] belongs to id.
    pub offsets: Vec<u32>,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub struct Pieces {
    pub flags: Vec<u8>,
    pub table: Table,
    /// The spelling of a token that comes first, where that differs (empty offsets: it does not).
    pub first: Table,
    /// A tokenizer without decoder joins tokens by a blank.
    pub is_joined: bool,
    /// At most this many of this character are dropped at the start of the text.
    pub strip: char,
    pub strip_count: u32,
}

enum Step {
    Replace(String, String),
    ByteFallback,
    Fuse,
    Strip(char, u32),
    ByteLevel,
    Metaspace { blank: char, drops_first: bool },
}

fn unsupported(name: &str) -> Failure {
    Failure::new(Status::Unsupported, format!("tokenizer.json: the decoder {name} is not supported"))
}

fn parse_step(component: &Value) -> Result<Step, Failure> {
    let kind = component["type"].as_str().unwrap_or("without a type");
    let first_char = |value: &Value| value.as_str().and_then(|text| text.chars().next());
    match kind {
        "ByteLevel" => Ok(Step::ByteLevel),
        "ByteFallback" => Ok(Step::ByteFallback),
        "Fuse" => Ok(Step::Fuse),
        "Replace" => match (component["pattern"]["String"].as_str(), component["content"].as_str()) {
            (Some(pattern), Some(content)) if !pattern.is_empty() => Ok(Step::Replace(pattern.into(), content.into())),
            _ => Err(unsupported("Replace with a regular expression")),
        },
        "Strip" => match (first_char(&component["content"]), component["start"].as_u64(), component["stop"].as_u64()) {
            (Some(content), Some(start), Some(0)) => Ok(Step::Strip(content, start.min(u32::MAX as u64) as u32)),
            _ => Err(unsupported("Strip at the end of a text")),
        },
        "Metaspace" => Ok(Step::Metaspace {
            blank: first_char(&component["replacement"]).unwrap_or('\u{2581}'),
            drops_first: component["prepend_scheme"] != "never",
        }),
        other => Err(unsupported(other)),
    }
}

/// The character that stands for each byte in byte-level vocabularies: itself where it prints, else from U+0100 on.
fn byte_of_character(character: char) -> Option<u8> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match character as u32 {
        code @ 0..=0xff => prints(code as u8).then_some(code as u8),
        code @ 0x100..=0x143 => (0..=255u8).filter(|byte| !prints(*byte)).nth((code - 0x100) as usize),
        _ => None,
    }
}

fn byte_level(token: &str, characters: &[Option<u8>]) -> Vec<u8> {
    let bytes: Option<Vec<u8>> =
        token.chars().map(|character| characters.get(character as usize).copied().flatten()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

fn byte_fallback(token: &str) -> Option<u8> {
    let is_byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
    is_byte.then(|| u8::from_str_radix(token.get(3..5)?, 16).ok()).flatten()
}

/// A token's bytes after all steps.
fn decode(token: &str, steps: &[Step], is_first: bool, characters: &[Option<u8>]) -> Vec<u8> {
    let mut text = token.to_string();
    for step in steps {
        match step {
            Step::Replace(pattern, content) => text = text.replace(pattern.as_str(), content),
            Step::ByteFallback => {
                if let Some(byte) = byte_fallback(&text) {
                    return vec![byte];
                }
            }
            Step::ByteLevel => return byte_level(&text, characters),
            Step::Metaspace { blank, drops_first } => {
                text = text.replace(*blank, if is_first && *drops_first { "" } else { " " });
            }
            Step::Fuse | Step::Strip(..) => {}
        }
    }
    text.into_bytes()
}

impl Pieces {
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, Failure> {
        let mut pieces = Pieces::default();
        let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_value(d).ok()).unwrap_or(Value::Null);
        let components = match (&decoder, decoder["decoders"].as_array()) {
            (Value::Null, _) => Vec::new(),
            (_, Some(items)) => items.iter().collect(),
            _ => vec![&decoder],
        };
        let steps = components.iter().map(|c| parse_step(c)).collect::<Result<Vec<_>, _>>()?;
        pieces.is_joined = steps.is_empty();
        pieces.set_order(&steps)?;

        let vocabulary = tokenizer.get_vocab(true);
        let count = match vocabulary.values().max() {
            Some(id) if *id >= ID_MAX => {
                return Err(Failure::new(Status::Unsupported, format!("tokenizer.json: the id {id} is beyond {ID_MAX}")))
            }
            Some(id) => id + 1,
            None => 0,
        };
        let characters: Vec<_> = (0..0x144u32).map(|code| char::from_u32(code).and_then(byte_of_character)).collect();
        let differs_first = steps.iter().any(|step| matches!(step, Step::Metaspace { drops_first: true, .. }));
        let added = tokenizer.get_added_vocabulary();
        pieces.table.offsets.push(0);
        pieces.first.offsets.extend(differs_first.then_some(0));
        for id in 0..count {
            let token = tokenizer.id_to_token(id);
            let mut flag = 0;
            if let Some(token) = &token {
                flag = FLAG_PRESENT | if added.is_special_token(token) { FLAG_SPECIAL } else { 0 };
                pieces.table.bytes.extend(decode(token, &steps, false, &characters));
                if differs_first {
                    pieces.first.bytes.extend(decode(token, &steps, true, &characters));
                }
            }
            pieces.flags.push(flag);
            pieces.table.close_entry()?;
            if differs_first {
                pieces.first.close_entry()?;
            }
        }
        Ok(pieces)
    }

    /// Steps in another order than the known one would mean something else.
    fn set_order(&mut self, steps: &[Step]) -> Result<(), Failure> {
        let rank = |step: &Step| match step {
            Step::Replace(..) => 0,
            Step::ByteFallback => 1,
            Step::Fuse => 2,
            Step::Strip(..) => 3,
            Step::ByteLevel | Step::Metaspace { .. } => 4,
        };
        let alone = steps.len() == 1;
        for (index, step) in steps.iter().enumerate() {
            let out_of_order = index > 0 && rank(&steps[index - 1]) > rank(step);
            let not_alone = rank(step) == 4 && !alone;
            let strips_tokens = rank(step) == 3 && !matches!(steps.get(index.wrapping_sub(1)), Some(Step::Fuse));
            if out_of_order || not_alone || strips_tokens {
                return Err(unsupported("Sequence in this order"));
            }
            if let Step::Strip(content, count) = step {
                (self.strip, self.strip_count) = (*content, *count);
            }
        }
        Ok(())
    }
}

impl Table {
    fn close_entry(&mut self) -> Result<(), Failure> {
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| Failure::fixed(Status::Unsupported, "tokenizer.json: the vocabulary holds more than 4 GiB of text"))?;
        self.offsets.push(end);
        Ok(())
    }
}
