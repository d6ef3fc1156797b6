//! JSON as Python's json.dumps writes it: ", " and ": " by default, ASCII escapes on request, floats by repr.
use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::python::write_float;

/// The arguments of json.dumps that chat templates use.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

/// Nesting that json.dumps would also refuse (by RecursionError).
const DEPTH_MAX: usize = 500;

pub fn dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut writer = Writer { out: String::new(), style };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a JsonStyle,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => {
                let _ = write!(self.out, "{value}");
            }
            ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                match number {
                    _ if number.is_nan() => self.out.push_str("NaN"),
                    _ if number.is_infinite() => self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" }),
                    _ => write_float(&mut self.out, number),
                }
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', items.len(), depth, |writer, index| writer.value(&items[index], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.container('{', '}', keys.len(), depth, |writer, index| {
                    let key = &keys[index];
                    match key.as_str() {
                        Some(text) => writer.string(text),
                        None => writer.plain_key(key, depth)?,
                    }
                    writer.out.push_str(&writer.style.key_separator);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {kind} is not JSON serializable")));
            }
        }
        Ok(())
    }

    /// A key that is no string is written as its JSON between quotes.
    fn plain_key(&mut self, key: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('"');
        self.value(key, depth + 1)?;
        self.out.push('"');
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        item: impl Fn(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for index in 0..count {
            if index > 0 {
                self.out.push_str(&self.style.item_separator);
            }
            self.new_line(depth + 1);
            item(self, index)?;
        }
        if count > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\u{0}'..='\u{1f}' => self.escape(character as u16),
                // json.dumps leaves DEL alone unless it has to be ASCII, where it is.
                _ if self.style.ensure_ascii && !character.is_ascii() => {
                    let mut units = [0u16; 2];
                    for unit in character.encode_utf16(&mut units) {
                        self.escape(*unit);
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, unit: u16) {
        let _ = write!(self.out, "\\u{unit:04x}");
    }
}
