//! What C calls; text_native.h declares it.
use std::borrow::Cow;
use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, ptr, slice};

use serde_json::Map;

use crate::limits::{caught, within, Abandoned, Budget};
use crate::pieces::Pieces;
use crate::special_tokens::{parse_object, SpecialTokens, CONFIG_FILE, MAP_FILE};
use crate::template::{TemplateSources, Templates};
use crate::tokenizer::TextTokenizer;

/// The list of text_native.h.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Status {
    Ok,
    Invalid,
    Unsupported,
    Corrupt,
    NotFound,
    Io,
    NoMemory,
    Full,
}

/// One sentence and its kind.
#[derive(Debug)]
pub struct Failure {
    pub status: Status,
    pub message: Cow<'static, str>,
}

impl Failure {
    pub fn new(status: Status, message: String) -> Self {
        Failure { status, message: message.into() }
    }

    /// Allocates nothing.
    pub fn fixed(status: Status, message: &'static str) -> Self {
        Failure { status, message: message.into() }
    }
}

const MIB: usize = 1 << 20;
const FILE_BYTES_MAX: u64 = 512 << 20;
const OPEN_BUDGET: Budget = Budget { memory_bytes: 8192 * MIB, seconds: 120 };

/// Rendering copies the text a few times; a context of n bytes may cost 32 n.
fn render_budget(context_bytes: usize) -> Budget {
    Budget { memory_bytes: 256 * MIB + 32 * context_bytes, seconds: 30 + 2 * (context_bytes / MIB) as u64 }
}

/// Encoding keeps about a hundred bytes for each byte of a text that it cannot cut.
fn encode_budget(text_bytes: usize) -> Budget {
    Budget { memory_bytes: 1024 * MIB + 400 * text_bytes, seconds: 60 + 10 * (text_bytes / MIB) as u64 }
}

struct Model {
    tokenizer: TextTokenizer,
    templates: Templates,
}

/// The handle that C holds; calls that were given up keep the model itself alive.
pub struct TextNative {
    model: Arc<Model>,
    abandoned: Abandoned,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct NativeSlice {
    data: *const c_char,
    bytes: usize,
}

#[repr(C)]
pub struct NativeBuffer {
    data: *mut c_void,
    count: usize,
}

#[repr(C)]
pub struct NativeFacts {
    id_count: u32,
    flags: *const u8,
    offsets: *const u32,
    bytes: *const u8,
    first_offsets: *const u32,
    first_bytes: *const u8,
    is_joined: bool,
    strip: [u8; 4],
    strip_bytes: u32,
    strip_count: u32,
    vocabulary_size: u32,
    has_bos: bool,
    has_eos: bool,
    bos_id: u32,
    eos_id: u32,
    has_template: bool,
}

impl NativeSlice {
    /// SAFETY: data must be NULL or hold `bytes` bytes while the result is used.
    unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.data.is_null() {
            return &[];
        }
        unsafe { slice::from_raw_parts(self.data.cast(), self.bytes) }
    }
}

/// Copies a sentence into a C buffer: truncated at a character, zero terminated.
unsafe fn write_text(message: &str, text: *mut c_char, text_bytes: usize) {
    if text.is_null() || text_bytes == 0 {
        return;
    }
    let mut length = message.len().min(text_bytes - 1);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    // SAFETY: the caller's buffer has text_bytes bytes, and length is less.
    unsafe {
        ptr::copy_nonoverlapping(message.as_ptr(), text.cast(), length);
        *text.add(length) = 0;
    }
}

/// A malloc'ed copy with a zero byte behind it, so that C frees what C gets.
unsafe fn to_malloc<T: Copy>(items: &[T]) -> Result<NativeBuffer, Failure> {
    let bytes = std::mem::size_of_val(items);
    // SAFETY: a fresh block of bytes + 1 bytes holds a copy of the items and the terminator.
    unsafe {
        let data = libc::malloc(bytes + 1);
        if data.is_null() {
            return Err(Failure::fixed(Status::NoMemory, "no memory for the result"));
        }
        ptr::copy_nonoverlapping(items.as_ptr().cast(), data.cast::<u8>(), bytes);
        *data.cast::<u8>().add(bytes) = 0;
        Ok(NativeBuffer { data, count: items.len() })
    }
}

/// Ends every fallible call: a status, with the sentence written where C wants it.
unsafe fn finish<T>(answer: Result<T, Failure>, out: *mut T, text: *mut c_char, text_bytes: usize) -> Status {
    match answer {
        Ok(value) => {
            // SAFETY: C passes a place for the value.
            unsafe { out.write(value) };
            Status::Ok
        }
        Err(failure) => {
            unsafe { write_text(&failure.message, text, text_bytes) };
            failure.status
        }
    }
}

/// The bytes of a file; None where there is none.
fn read_file(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| Failure::new(Status::Io, format!("{name}: {error}"));
    let path = directory.join(name);
    let facts = match fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        facts => facts.map_err(failed)?,
    };
    if !facts.is_file() || facts.len() > FILE_BYTES_MAX {
        let message = format!("{name}: it must be a file of at most {FILE_BYTES_MAX} bytes");
        return Err(Failure::new(Status::Corrupt, message));
    }
    fs::read(&path).map(Some).map_err(failed)
}

/// chat_template.jinja is "default"; additional_chat_templates/NAME.jinja is NAME.
fn read_templates(directory: &Path) -> Result<TemplateSources, Failure> {
    let mut sources = TemplateSources { json: read_file(directory, "chat_template.json")?, ..Default::default() };
    if let Some(bytes) = read_file(directory, "chat_template.jinja")? {
        sources.files.push(("default".into(), bytes));
    }
    const FOLDER: &str = "additional_chat_templates";
    for entry in fs::read_dir(directory.join(FOLDER)).into_iter().flatten().flatten() {
        let file = entry.file_name();
        if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".jinja")) {
            let bytes = read_file(directory, &format!("{FOLDER}/{name}.jinja"))?;
            sources.files.extend(bytes.map(|bytes| (name.to_string(), bytes)));
        }
    }
    Ok(sources)
}

fn open_model(directory: &Path) -> Result<Model, Failure> {
    let tokenizer_json = read_file(directory, "tokenizer.json")?
        .ok_or_else(|| Failure::fixed(Status::NotFound, "tokenizer.json is missing"))?;
    let object = |name| match read_file(directory, name)? {
        Some(bytes) => parse_object(name, &bytes),
        None => Ok(Map::new()),
    };
    let config = object(CONFIG_FILE)?;
    let mut special = SpecialTokens::from_config(&config)?;
    special.merge_map(&object(MAP_FILE)?)?;
    let tokenizer = caught(|| TextTokenizer::open(&tokenizer_json, &special)).map_err(|failure| match failure.message {
        message if message.starts_with("tokenizer.json") => Failure { message, ..failure },
        message => Failure::new(failure.status, format!("tokenizer.json: {message}")),
    })?;
    let templates = Templates::open(read_templates(directory)?, &config, &special)?;
    Ok(Model { tokenizer, templates })
}

/// # Safety
/// As text_native.h says; so for all functions here.
#[no_mangle]
pub unsafe extern "C" fn text_native_open(
    directory: NativeSlice,
    model: *mut *mut TextNative,
    error_text: *mut c_char,
    error_bytes: usize,
) -> Status {
    let opened = caught(|| {
        let path = String::from_utf8_lossy(unsafe { directory.as_bytes() }).into_owned();
        let folder = PathBuf::from(&path);
        let model = within(OPEN_BUDGET, &Abandoned::default(), move || open_model(&folder));
        let model = model.map_err(|failure| Failure::new(failure.status, format!("{path}: {}", failure.message)))?;
        Ok(Box::into_raw(Box::new(TextNative { model: Arc::new(model), abandoned: Abandoned::default() })))
    });
    unsafe { finish(opened, model, error_text, error_bytes) }
}

#[no_mangle]
pub unsafe extern "C" fn text_native_close(model: *mut TextNative) {
    if !model.is_null() {
        // SAFETY: it came from text_native_open, and C gives it back once.
        let model = unsafe { Box::from_raw(model) };
        let _ = caught(|| {
            drop(model);
            Ok(())
        });
    }
}

#[no_mangle]
pub unsafe extern "C" fn text_native_describe(model: *const TextNative, facts: *mut NativeFacts) {
    let Model { tokenizer, templates } = unsafe { &*(*model).model };
    let Pieces { flags, table, first, is_joined, strip, strip_count } = &tokenizer.pieces;
    let has_first = !first.offsets.is_empty();
    let mut strip_utf8 = [0; 4];
    let strip_bytes = strip.encode_utf8(&mut strip_utf8).len() as u32;
    let described = NativeFacts {
        id_count: flags.len() as u32,
        flags: flags.as_ptr(),
        offsets: table.offsets.as_ptr(),
        bytes: table.bytes.as_ptr(),
        first_offsets: if has_first { first.offsets.as_ptr() } else { ptr::null() },
        first_bytes: if has_first { first.bytes.as_ptr() } else { ptr::null() },
        is_joined: *is_joined,
        strip: strip_utf8,
        strip_bytes,
        strip_count: *strip_count,
        vocabulary_size: tokenizer.vocabulary_size() as u32,
        has_bos: tokenizer.bos.is_some(),
        has_eos: tokenizer.eos.is_some(),
        bos_id: tokenizer.bos.unwrap_or(0),
        eos_id: tokenizer.eos.unwrap_or(0),
        has_template: !templates.is_empty(),
    };
    unsafe { facts.write(described) };
}

#[no_mangle]
pub unsafe extern "C" fn text_native_template_problem(model: *const TextNative, text: *mut c_char, text_bytes: usize) -> bool {
    let problem = unsafe { &*model }.model.templates.problem();
    if let Some(problem) = &problem {
        unsafe { write_text(problem, text, text_bytes) };
    }
    problem.is_some()
}

#[no_mangle]
pub unsafe extern "C" fn text_native_encode(
    model: *const TextNative,
    text: NativeSlice,
    add_special_tokens: bool,
    ids: *mut NativeBuffer,
    error_text: *mut c_char,
    error_bytes: usize,
) -> Status {
    let handle = unsafe { &*model };
    let encoded = caught(|| {
        let bytes = unsafe { text.as_bytes() };
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Failure::new(Status::Invalid, format!("the text is not UTF-8 at byte {}", error.valid_up_to())))?
            .to_string();
        let model = handle.model.clone();
        let work = move || model.tokenizer.encode(&text, add_special_tokens);
        let ids = within(encode_budget(bytes.len()), &handle.abandoned, work)
            .map_err(|failure| Failure::new(failure.status, format!("encoding the text: {}", failure.message)))?;
        unsafe { to_malloc(&ids) }
    });
    unsafe { finish(encoded, ids, error_text, error_bytes) }
}

#[no_mangle]
pub unsafe extern "C" fn text_native_render(
    model: *const TextNative,
    template_override: NativeSlice,
    context: NativeSlice,
    text: *mut NativeBuffer,
    error_text: *mut c_char,
    error_bytes: usize,
) -> Status {
    let handle = unsafe { &*model };
    let rendered = caught(|| {
        let context = unsafe { context.as_bytes() }.to_vec();
        let given = if template_override.data.is_null() {
            None
        } else {
            let bytes = unsafe { template_override.as_bytes() }.to_vec();
            let text = String::from_utf8(bytes);
            Some(text.map_err(|_| Failure::fixed(Status::Invalid, "the given chat template is not UTF-8"))?)
        };
        let model = handle.model.clone();
        let budget = render_budget(context.len());
        let work = move || model.templates.render(given.as_deref(), &context);
        let rendered = within(budget, &handle.abandoned, work).map_err(|failure| match failure.status {
            Status::Full | Status::Corrupt => {
                Failure::new(failure.status, format!("rendering the chat template: {}", failure.message))
            }
            _ => failure,
        })?;
        unsafe { to_malloc(rendered.as_bytes()) }
    });
    unsafe { finish(rendered, text, error_text, error_bytes) }
}
