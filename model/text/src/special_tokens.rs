//! tokenizer_config.json and special_tokens_map.json: the tokens with a name, and those that a tokenizer file lacks.
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::abi::{Failure, Status};

pub const CONFIG_FILE: &str = "tokenizer_config.json";
pub const MAP_FILE: &str = "special_tokens_map.json";

#[derive(Default)]
pub struct SpecialTokens {
    /// ("bos_token", its token) and so on: what a template reads by name.
    pub named: Vec<(String, AddedToken)>,
    /// Special tokens without a name.
    pub extra: Vec<AddedToken>,
    /// added_tokens_decoder, by id.
    pub added: Vec<AddedToken>,
    /// Whether added_tokens_decoder is there: then special_tokens_map.json is not read.
    has_added: bool,
}

pub fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, Failure> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Failure::new(Status::Corrupt, format!("{file}: it must be a JSON object"))),
        Err(error) => Err(Failure::new(Status::Corrupt, format!("{file}: {error}"))),
    }
}

/// A token given as a string or as an object {"content": ..., "lstrip": ..., ...}. None: null.
fn parse_token(file: &str, key: &str, value: &Value, special: bool) -> Result<Option<AddedToken>, Failure> {
    let wrong = || Failure::new(Status::Corrupt, format!("{file}: '{key}' must be a string or an object with 'content'"));
    match value {
        Value::Null => Ok(None),
        Value::String(content) => Ok(Some(AddedToken::from(content, special).normalized(false))),
        Value::Object(members) => {
            let content = members.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
            let flag = |name: &str| members.get(name).and_then(Value::as_bool);
            let special = special || flag("special").unwrap_or(false);
            Ok(Some(
                AddedToken::from(content, special)
                    .single_word(flag("single_word").unwrap_or(false))
                    .lstrip(flag("lstrip").unwrap_or(false))
                    .rstrip(flag("rstrip").unwrap_or(false))
                    .normalized(flag("normalized").unwrap_or(!special)),
            ))
        }
        _ => Err(wrong()),
    }
}

impl SpecialTokens {
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, Failure> {
        let mut tokens = SpecialTokens::default();
        if let Some(added) = config.get("added_tokens_decoder") {
            tokens.has_added = true;
            tokens.read_added(added)?;
        }
        tokens.read_names(CONFIG_FILE, config)?;
        Ok(tokens)
    }

    /// The older place of the same names; it counts where added_tokens_decoder is absent.
    pub fn merge_map(&mut self, map: &Map<String, Value>) -> Result<(), Failure> {
        if self.has_added {
            return Ok(());
        }
        self.read_names(MAP_FILE, map)
    }

    fn read_added(&mut self, added: &Value) -> Result<(), Failure> {
        let wrong = || Failure::new(Status::Corrupt, format!("{CONFIG_FILE}: 'added_tokens_decoder' must map ids to tokens"));
        let mut by_id = Vec::new();
        for (id, token) in added.as_object().ok_or_else(wrong)? {
            let id: u32 = id.parse().map_err(|_| wrong())?;
            by_id.push((id, parse_token(CONFIG_FILE, "added_tokens_decoder", token, false)?.ok_or_else(wrong)?));
        }
        by_id.sort_by_key(|(id, _)| *id);
        self.added = by_id.into_iter().map(|(_, token)| token).collect();
        Ok(())
    }

    fn read_names(&mut self, file: &str, members: &Map<String, Value>) -> Result<(), Failure> {
        for (key, value) in members {
            let is_token = key.ends_with("_token") && (value.is_string() || value.is_object() || value.is_null());
            if is_token {
                let token = parse_token(file, key, value, true)?;
                self.named.retain(|(name, _)| name != key);
                self.named.extend(token.map(|token| (key.clone(), token)));
            } else if matches!(key.as_str(), "bos_token" | "eos_token") {
                return Err(Failure::new(Status::Corrupt, format!("{file}: '{key}' must be a string or an object")));
            } else if key == "additional_special_tokens" || key == "extra_special_tokens" {
                self.read_extra(file, key, value)?;
            }
        }
        Ok(())
    }

    fn read_extra(&mut self, file: &str, key: &str, value: &Value) -> Result<(), Failure> {
        match value {
            Value::Null => {}
            Value::Array(items) => {
                for item in items {
                    self.extra.extend(parse_token(file, key, item, true)?);
                }
            }
            // {"image_token": "<image>"}: named like bos_token.
            Value::Object(members) => {
                for (name, item) in members {
                    self.named.extend(parse_token(file, key, item, true)?.map(|token| (name.clone(), token)));
                }
            }
            _ => return Err(Failure::new(Status::Corrupt, format!("{file}: '{key}' must be a list of tokens"))),
        }
        Ok(())
    }

    pub fn content(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(key, _)| key == name).map(|(_, token)| token.content.as_str())
    }
}
