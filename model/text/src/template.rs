//! Chat templates: which one, compiled once, rendered as transformers' sandboxed Jinja2 does it.
use std::fmt;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use crate::abi::{Failure, Status};
use crate::json_format::{dumps, JsonStyle};
use crate::python;
use crate::special_tokens::{parse_object, SpecialTokens, CONFIG_FILE};

/// Instructions of one rendering; a message of thirty bytes takes about two hundred.
const FUEL: u64 = 50_000_000;
const FUEL_PER_CONTEXT_BYTE: u64 = 16;

pub struct Templates {
    /// In the order of the file; a single template is called "default".
    compiled: Vec<(String, Result<Environment<'static>, String>)>,
    special: Vec<(String, String)>,
}

/// Where a model directory keeps templates; an earlier source wins as a whole.
#[derive(Default)]
pub struct TemplateSources {
    /// chat_template.jinja, and additional_chat_templates/NAME.jinja.
    pub files: Vec<(String, Vec<u8>)>,
    /// chat_template.json: {"chat_template": ...}.
    pub json: Option<Vec<u8>>,
}

/// The message of raise_exception, carried as the source of minijinja's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Templates {
    pub fn open(sources: TemplateSources, config: &Map<String, Json>, special: &SpecialTokens) -> Result<Self, Failure> {
        let mut named = Vec::new();
        for (name, bytes) in sources.files {
            let text = String::from_utf8(bytes)
                .map_err(|_| Failure::new(Status::Corrupt, format!("the chat template '{name}' is not UTF-8")))?;
            named.push((name, text));
        }
        if let (true, Some(bytes)) = (named.is_empty(), sources.json) {
            const FILE: &str = "chat_template.json";
            named = named_templates(FILE, parse_object(FILE, &bytes)?.get("chat_template"))?;
        }
        if named.is_empty() {
            named = named_templates(CONFIG_FILE, config.get("chat_template"))?;
        }
        let special = special.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect();
        let compiled = named
            .into_iter()
            .map(|(name, text)| {
                let environment = compile(&text);
                (name, environment)
            })
            .collect();
        Ok(Templates { compiled, special })
    }

    pub fn is_empty(&self) -> bool {
        self.compiled.is_empty()
    }

    /// What is wrong with the first template that does not compile.
    pub fn problem(&self) -> Option<String> {
        let broken = |(name, environment): &(String, Result<_, String>)| {
            environment.as_ref().err().map(|problem| format!("the chat template '{name}': {problem}"))
        };
        self.compiled.iter().find_map(broken)
    }

    /// Where there are several: tool_use for a request with tools, else default.
    fn select(&self, has_tools: bool) -> Result<&Environment<'static>, Failure> {
        let find = |wanted: &str| self.compiled.iter().find(|(name, _)| name == wanted);
        let tool_use = if has_tools { find("tool_use") } else { None };
        match tool_use.or_else(|| find("default")) {
            Some((_, Ok(environment))) => Ok(environment),
            Some((name, Err(problem))) => {
                Err(Failure::new(Status::Unsupported, format!("the chat template '{name}' cannot be used: {problem}")))
            }
            None if self.compiled.is_empty() => {
                Err(Failure::fixed(Status::NotFound, "the model directory has no chat template"))
            }
            None => {
                let names: Vec<_> = self.compiled.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.join(", ");
                Err(Failure::new(Status::NotFound, format!("no chat template is called 'default' (there are: {names})")))
            }
        }
    }

    pub fn render(&self, template_override: Option<&str>, context: &[u8]) -> Result<String, Failure> {
        let invalid = |message: String| Failure::new(Status::Invalid, message);
        let fuel = FUEL + FUEL_PER_CONTEXT_BYTE * context.len() as u64;
        let context: Json = serde_json::from_slice(context).map_err(|e| invalid(format!("the template context: {e}")))?;
        let Json::Object(mut context) = context else {
            return Err(invalid("the template context must be a JSON object".into()));
        };
        // As in transformers these three are always there, so that a template may test them for none.
        for (name, absent) in [("tools", Json::Null), ("documents", Json::Null), ("add_generation_prompt", Json::Bool(false))] {
            context.entry(name).or_insert(absent);
        }
        if let Some(Json::Array(messages)) = context.get_mut("messages") {
            messages.iter_mut().for_each(normalise_message);
        }
        let has_tools = !context["tools"].is_null();
        for (name, content) in &self.special {
            context.entry(name.as_str()).or_insert_with(|| Json::String(content.clone()));
        }
        let root: Value = context.into_iter().map(|(name, value)| (name, python::from_json(value))).collect();
        match template_override {
            Some(text) => {
                let environment = compile(text).map_err(|problem| invalid(format!("the given chat template: {problem}")))?;
                run(&environment, fuel, root)
            }
            None => run(self.select(has_tools)?, fuel, root),
        }
    }
}

fn run(environment: &Environment<'_>, fuel: u64, root: Value) -> Result<String, Failure> {
    // A clone shares the compiled template; only the limit is its own.
    let mut environment = environment.clone();
    environment.set_fuel(Some(fuel));
    let rendered = environment.get_template("chat").and_then(|template| template.render(root));
    rendered.map_err(|error| {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(current) = source {
            if let Some(raised) = current.downcast_ref::<Raised>() {
                return Failure::new(Status::Invalid, raised.0.clone());
            }
            source = current.source();
        }
        Failure::new(Status::Invalid, format!("the chat template failed: {error:#}"))
    })
}

/// A string, or a list of {"name", "template"}.
fn named_templates(file: &str, value: Option<&Json>) -> Result<Vec<(String, String)>, Failure> {
    let wrong = || {
        let message = format!("{file}: 'chat_template' must be a string or a list of objects with 'name' and 'template'");
        Failure::new(Status::Corrupt, message)
    };
    match value {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::String(text)) => Ok(vec![("default".into(), text.clone())]),
        Some(Json::Array(items)) => items
            .iter()
            .map(|item| match (item["name"].as_str(), item["template"].as_str()) {
                (Some(name), Some(text)) => Ok((name.to_string(), text.to_string())),
                _ => Err(wrong()),
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

/// What transformers does to a message first: a null member is an absent one (the OpenAI API sends "content": null), and
/// reasoning, which goes by several names, is found under the two that templates read.
fn normalise_message(message: &mut Json) {
    let Json::Object(members) = message else { return };
    members.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| members.get(*name)).cloned() else { return };
    if !members.contains_key("thinking") {
        members.shift_insert(0, "thinking".into(), reasoning.clone());
    }
    members.insert("reasoning_content".into(), reasoning);
}

fn compile(text: &str) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&python::str_of(value))?),
    });
    environment.set_unknown_method_callback(python::method);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = python::str_of(&message);
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::str_of(value));
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("int", to_int);
    environment.add_filter("trim", |value: &Value, characters: Option<String>| trim(&python::str_of(value), characters));
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Seq | Iterable | Map | String | Undefined)
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment
        .add_template_owned("chat", without_generation_tags(&text.replace("\r\n", "\n").replace('\r', "\n")))
        .map_err(|error| format!("{error:#}"))?;
    Ok(environment)
}

/// {% generation %} marks what the assistant wrote, for training; it opens a scope and prints its body, as {% with %} does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            Some(b'{') => end_of_tag(tag, "}}"),
            Some(b'%') => end_of_tag(tag, "%}"),
            _ => Some(1),
        };
        // What never ends is left for the parser to complain about.
        let Some(mut length) = length else { break };
        let name = tag[..length].trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        let renamed = match name {
            "generation" => Some(tag[..length].replace("generation", "with")),
            "endgeneration" => Some(tag[..length].replace("endgeneration", "endwith")),
            _ => None,
        };
        if name == "raw" && tag.as_bytes()[1] == b'%' {
            length = end_of_raw(tag).unwrap_or(tag.len());
        }
        match renamed {
            Some(renamed) if tag.as_bytes()[1] == b'%' => out.push_str(&renamed),
            _ => out.push_str(&tag[..length]),
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    out
}

/// Bytes of a tag that starts `text`, up to its closing mark outside of string literals.
fn end_of_tag(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'\'' | b'"') => {
                at += 1;
                while *bytes.get(at)? != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ if bytes[at..].starts_with(close.as_bytes()) => return Some(at + 2),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Bytes up to and with {% endraw %}.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut from = 2;
    loop {
        let start = from + text[from..].find("{%")?;
        let end = start + text[start..].find("%}")? + 2;
        let name = text[start..end].trim_matches(['{', '}', '%', '-', '+', ' ', '\n', '\t']);
        if name == "endraw" {
            return Some(end);
        }
        from = start + 2;
    }
}

/// json.dumps under the name and with the arguments that transformers gives it.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        match positional.get(index) {
            Some(value) => Ok(value.clone()),
            None => Ok(named.get::<Option<Value>>(name)?.unwrap_or_default()),
        }
    };
    let (ensure_ascii, indent) = (argument(0, "ensure_ascii")?, argument(1, "indent")?);
    let (separators, sort_keys) = (argument(2, "separators")?, argument(3, "sort_keys")?);
    named.assert_all_used()?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => Some(indent.as_str().unwrap_or_default().to_string()),
        _ => Some(" ".repeat(i64::try_from(indent)?.clamp(0, 256) as usize)),
    };
    let (mut item_separator, mut key_separator) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if !separators.is_none() && !separators.is_undefined() {
        item_separator = python::str_of(&separators.get_item_by_index(0)?);
        key_separator = python::str_of(&separators.get_item_by_index(1)?);
    }
    let (ensure_ascii, sort_keys) = (ensure_ascii.is_true(), sort_keys.is_true());
    dumps(value, &JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys })
}

fn join(value: &Value, separator: Option<String>, named: Kwargs) -> Result<String, Error> {
    let separator = match separator {
        Some(separator) => separator,
        None => named.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute: Option<String> = named.get("attribute")?;
    named.assert_all_used()?;
    let mut out = String::new();
    for (index, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(attribute) => item.get_attr(attribute)?,
            None => item,
        };
        out.push_str(if index > 0 { &separator } else { "" });
        out.push_str(&python::str_of(&item));
    }
    Ok(out)
}

/// Jinja2's indent: a last line that ends in a newline keeps it.
fn indent(value: &Value, width: Option<Value>, first: Option<bool>, blank: Option<bool>, named: Kwargs) -> Result<String, Error> {
    let width = match width {
        Some(width) => width,
        None => named.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = first.map_or_else(|| named.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| named.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    named.assert_all_used()?;
    let margin = match width.as_str() {
        Some(margin) => margin.to_string(),
        None => " ".repeat(i64::try_from(width)?.clamp(0, 1024) as usize),
    };
    let mut out = String::new();
    for (index, line) in python::str_of(value).split('\n').enumerate() {
        out.push_str(if index > 0 { "\n" } else { "" });
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Jinja2's int: a text that is no number is the default.
fn to_int(value: &Value, default: Option<i64>) -> Value {
    let default = Value::from(default.unwrap_or(0));
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => f64::try_from(value.clone()).map_or(default, |number| Value::from(number as i64)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            let as_float = || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number as i64);
            text.parse::<i64>().ok().or_else(as_float).map_or(default, Value::from)
        }
        _ => default,
    }
}

fn trim(text: &str, characters: Option<String>) -> String {
    let is_space = |character: char| character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character);
    let is_trimmed = |character| characters.as_ref().map_or_else(|| is_space(character), |set| set.contains(character));
    text.trim_matches(is_trimmed).to_string()
}

/// Nothing has no length in minijinja; in Jinja2 what is undefined has none of it.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let without = || Error::new(ErrorKind::InvalidOperation, format!("a {} has no length", value.kind()));
    value.len().ok_or_else(without)
}

/// The local time by the C library's strftime, as Python does it.
fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long or holds a zero byte");
    // A leading mark tells an empty result from one that does not fit.
    let format = std::ffi::CString::new(format!("x{format}")).map_err(|_| wrong())?;
    let mut out = vec![0u8; 4096];
    // SAFETY: the buffers outlive the calls and their sizes are passed; a zeroed tm is a valid one.
    let written = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut parts);
        libc::strftime(out.as_mut_ptr().cast(), out.len(), format.as_ptr(), &parts)
    };
    if written == 0 {
        return Err(wrong());
    }
    Ok(String::from_utf8_lossy(&out[1..written]).into_owned())
}
