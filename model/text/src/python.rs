//! Values as a Python template sees them: dictionaries and lists that print as Python prints them, and the string methods
//! where minijinja's Python compatibility differs from Python.
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::value::{from_args, Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Python's list of the context.
#[derive(Debug)]
struct List(Vec<Value>);

/// Python's dict of the context, in the order of its JSON.
#[derive(Debug)]
struct Dict(IndexMap<String, Value>);

pub fn from_json(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (_, Some(value)) => Value::from(value),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => Value::from_object(List(items.into_iter().map(from_json).collect())),
        serde_json::Value::Object(members) => {
            Value::from_object(Dict(members.into_iter().map(|(key, item)| (key, from_json(item))).collect()))
        }
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&repr(&Value::from_dyn_object(self.clone())))
    }
}

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.0.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(Value::from).collect())
    }

    /// In Python a method wins over a key of its name: `schema.items()` works though a JSON schema has a key "items".
    fn call_method(self: &Arc<Self>, state: &State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        pycompat::unknown_method_callback(state, &Value::from_dyn_object(self.clone()), name, args)
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&repr(&Value::from_dyn_object(self.clone())))
    }
}

/// Python's str(): what `{{ value }}` prints.
pub fn str_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => repr(value),
    }
}

/// Python's repr().
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(&mut out, value, 0);
    out
}

fn write_repr(out: &mut String, value: &Value, depth: usize) {
    match value.kind() {
        _ if depth > 200 => out.push_str("..."),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => write_float(out, f64::try_from(value.clone()).unwrap_or(f64::NAN)),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1);
            }
            out.push(']');
        }
        // A namespace or a loop is an object with a name of its own, not a dictionary to print.
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1);
                out.push_str(": ");
                write_repr(out, &value.get_item(&key).unwrap_or_default(), depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's repr of a str: single quotes unless only single quotes are inside.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{ad}' => out.push_str(&format!("\\x{:02x}", character as u32)),
            _ => out.push(character),
        }
    }
    out.push(quote);
}

/// Python's repr of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub fn write_float(out: &mut String, number: f64) {
    if !number.is_finite() {
        out.push_str(if number.is_nan() { "nan" } else if number > 0.0 { "inf" } else { "-inf" });
        return;
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the e of {:e}");
    let exponent: i32 = exponent.parse().expect("the exponent of {:e}");
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("{digits}e{sign}{:02}", exponent.abs()));
    }
}

fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Python's str.strip, which also takes the four separators U+001C to U+001F for white space.
fn strip(text: &str, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let (characters,): (Option<&str>,) = from_args(args)?;
    let is_stripped = |character: char| characters.map_or_else(|| is_space(character), |set| set.contains(character));
    let text = if left { text.trim_start_matches(is_stripped) } else { text };
    Ok(Value::from(if right { text.trim_end_matches(is_stripped) } else { text }))
}

/// Characters, not bytes, before the byte offset of a match.
fn position(text: &str, offset: Option<usize>) -> Value {
    Value::from(offset.map_or(-1, |offset| text[..offset].chars().count() as i64))
}

/// str.rsplit: pieces from the right, at most `limit` splits.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    let limit = limit.filter(|limit| *limit >= 0).map_or(usize::MAX, |limit| limit as usize);
    let mut pieces: Vec<Value> = Vec::new();
    let mut rest = text;
    match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => {
            while pieces.len() < limit {
                let Some((before, after)) = rest.rsplit_once(separator) else { break };
                pieces.push(Value::from(after));
                rest = before;
            }
            pieces.push(Value::from(rest));
        }
        None => {
            rest = rest.trim_end_matches(is_space);
            while pieces.len() < limit && !rest.is_empty() {
                let Some((at, space)) = rest.char_indices().rev().find(|(_, character)| is_space(*character)) else { break };
                pieces.push(Value::from(&rest[at + space.len_utf8()..]));
                rest = rest[..at].trim_end_matches(is_space);
            }
            if !rest.is_empty() {
                pieces.push(Value::from(rest));
            }
        }
    }
    pieces.reverse();
    Ok(Value::from(pieces))
}

/// Methods on plain values: Python's answers where pycompat has none or another one.
pub fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, name, args) };
    match (name, args.first().and_then(Value::as_str)) {
        ("strip", _) => strip(text, args, true, true),
        ("lstrip", _) => strip(text, args, true, false),
        ("rstrip", _) => strip(text, args, false, true),
        ("rsplit", _) => rsplit(text, args),
        ("find", Some(wanted)) if args.len() == 1 => Ok(position(text, text.find(wanted))),
        ("rfind", Some(wanted)) if args.len() == 1 => Ok(position(text, text.rfind(wanted))),
        ("index", Some(wanted)) if args.len() == 1 => match text.find(wanted) {
            Some(offset) => Ok(position(text, Some(offset))),
            None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        },
        ("count", Some("")) => Ok(Value::from(text.chars().count() + 1)),
        ("removeprefix", Some(prefix)) => Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        ("removesuffix", Some(suffix)) => Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        ("partition", Some(separator)) if !separator.is_empty() => {
            let (before, middle, after) = match text.split_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => (text, "", ""),
            };
            Ok([before, middle, after].into_iter().map(Value::from).collect())
        }
        ("rpartition", Some(separator)) if !separator.is_empty() => {
            let (before, middle, after) = match text.rsplit_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => ("", "", text),
            };
            Ok([before, middle, after].into_iter().map(Value::from).collect())
        }
        // Every character of nothing is anything; Python says no.
        ("isalpha" | "isdigit" | "isnumeric" | "isalnum" | "isspace", _) if text.is_empty() => Ok(Value::from(false)),
        ("islower", _) => Ok(Value::from(has_only_case(text, char::is_lowercase, char::is_uppercase))),
        ("isupper", _) => Ok(Value::from(has_only_case(text, char::is_uppercase, char::is_lowercase))),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn has_only_case(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}
