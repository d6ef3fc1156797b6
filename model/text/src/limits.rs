//! What foreign bytes may cost: a tokenizer file, a template or a text runs on a thread of its own with a deep stack, a
//! budget of memory and a deadline.
//!
//! Neither library can be told to stop: a template doubles a string forty times in forty instructions, and a regular
//! expression may backtrack for ever. The thread is therefore given up rather than stopped: an allocation past the budget
//! parks it for good (returning NULL would abort the process, and unwinding out of an allocator is undefined), and its
//! caller gets an error. What it held is lost, so a model that did this `ABANDONED_MAX` times is not asked again.
use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};

use crate::abi::{Failure, Status};

const STACK_BYTES: usize = 64 << 20;
const ABANDONED_MAX: usize = 4;

#[derive(Clone, Copy)]
pub struct Budget {
    pub memory_bytes: usize,
    pub seconds: u64,
}

/// How many threads one model has cost; refuses more.
#[derive(Default)]
pub struct Abandoned(AtomicUsize);

type Answer = Result<Box<dyn Any + Send>, Failure>;

/// Shared by the caller and its worker; the first to fill the slot decides.
struct Slot {
    answer: Mutex<Option<Answer>>,
    filled: Condvar,
}

impl Slot {
    fn fill(&self, answer: Answer) {
        let mut slot = self.answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if slot.is_none() {
            *slot = Some(answer);
        }
        drop(slot);
        self.filled.notify_one();
    }
}

thread_local! {
    static USED_BYTES: Cell<isize> = const { Cell::new(0) };
    static BUDGET_BYTES: Cell<isize> = const { Cell::new(isize::MAX) };
    static SLOT: Cell<*const Slot> = const { Cell::new(ptr::null()) };
    static PANIC_TEXT: Cell<[u8; 256]> = const { Cell::new([0; 256]) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Counts the bytes that this thread took; parks it when they pass its budget.
fn account(bytes: isize) {
    let used = USED_BYTES.get().wrapping_add(bytes);
    if used > BUDGET_BYTES.get() && bytes > 0 {
        // Unlimited from here on: telling the caller may itself allocate.
        BUDGET_BYTES.set(isize::MAX);
        let slot = SLOT.get();
        if !slot.is_null() {
            // SAFETY: the worker's own Arc keeps the slot alive, and the worker never goes on.
            unsafe { &*slot }.fill(Err(Failure::fixed(Status::Full, "it needs more memory than such a call may take")));
            loop {
                // SAFETY: takes no arguments.
                unsafe { libc::pause() };
            }
        }
    }
    USED_BYTES.set(used);
}

// SAFETY: every call is the system allocator's; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        account(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        account(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        account(-(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        account(new_size as isize - layout.size() as isize);
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// Panics become error sentences, so nothing is printed; the hook keeps the message for `caught`.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.to_string().replace('\n', " ");
            let mut kept = [0u8; 256];
            let length = text.len().min(kept.len());
            kept[..length].copy_from_slice(&text.as_bytes()[..length]);
            PANIC_TEXT.set(kept);
        }));
    });
}

/// Runs `work` on this thread and turns a panic into a failure.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    quiet_panics();
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let text = PANIC_TEXT.get();
        let text = String::from_utf8_lossy(&text);
        Err(Failure::new(Status::Corrupt, format!("it breaks the parser ({})", text.trim_end_matches('\0'))))
    })
}

/// Runs `work` on a thread of its own within `budget` and waits for it.
pub fn within<T: Send + 'static>(
    budget: Budget,
    abandoned: &Abandoned,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    if abandoned.0.load(Ordering::Relaxed) >= ABANDONED_MAX {
        return Err(Failure::fixed(Status::Full, "earlier calls never ended within their limits, so it is not run again"));
    }
    let slot = Arc::new(Slot { answer: Mutex::new(None), filled: Condvar::new() });
    let theirs = slot.clone();
    std::thread::Builder::new()
        .name("text".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            SLOT.set(Arc::as_ptr(&theirs));
            USED_BYTES.set(0);
            BUDGET_BYTES.set(isize::try_from(budget.memory_bytes).unwrap_or(isize::MAX));
            let answer = caught(work).map(|value| Box::new(value) as Box<dyn Any + Send>);
            BUDGET_BYTES.set(isize::MAX);
            theirs.fill(answer);
        })
        .map_err(|error| Failure::new(Status::NoMemory, format!("no thread for it ({error})")))?;

    let deadline = Instant::now() + Duration::from_secs(budget.seconds);
    let mut answer = slot.answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.take() {
            Some(Ok(value)) => return Ok(*value.downcast::<T>().expect("the worker returns what its closure does")),
            Some(Err(failure)) => {
                if matches!(failure.status, Status::Full) {
                    abandoned.0.fetch_add(1, Ordering::Relaxed);
                }
                return Err(failure);
            }
            None if left.is_zero() => {
                abandoned.0.fetch_add(1, Ordering::Relaxed);
                *answer = Some(Err(Failure::fixed(Status::Full, "given up")));
                return Err(Failure::new(Status::Full, format!("it did not end within {} s", budget.seconds)));
            }
            None => {
                answer = match slot.filled.wait_timeout(answer, left) {
                    Ok((guard, _)) => guard,
                    Err(poisoned) => poisoned.into_inner().0,
                };
            }
        }
    }
}
