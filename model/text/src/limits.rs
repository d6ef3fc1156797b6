//! What foreign bytes may cost: a tokenizer file, a template or a text runs on a thread of its own with a deep stack, a
//! budget of memory and a deadline.
//!
//! Neither library can be told to stop: a template doubles a string forty times in forty instructions, nests values until
//! freeing them overflows the stack, and a regular expression may backtrack for ever. The thread is therefore given up
//! rather than stopped: it is parked for good where it allocates past the budget or after the deadline (returning NULL would
//! abort the process, and unwinding out of an allocator is undefined) and where it touches the guard page of its
//! stack, and its caller gets an error. What it held is lost, so a model that did this `ABANDONED_MAX` times is not asked
//! again.
use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};

use crate::abi::{Failure, Status};

const STACK_BYTES: usize = 64 << 20;
/// The signal handler's own stack.
const SIGNAL_STACK_BYTES: usize = 64 << 10;
/// Faults this near to the end of the stack are its overflow.
const GUARD_BYTES: usize = 1 << 20;
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
    given_up: AtomicBool,
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
    static STACK_END: Cell<usize> = const { Cell::new(0) };
    static PANIC_TEXT: Cell<[u8; 256]> = const { Cell::new([0; 256]) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Tells the caller why, and never comes back. Allocates nothing.
fn park(slot: &Slot, why: &'static str) -> ! {
    slot.fill(Err(Failure::fixed(Status::Full, why)));
    loop {
        // SAFETY: takes no arguments.
        unsafe { libc::pause() };
    }
}

/// Counts the bytes that this thread took; parks it when they pass its budget, or when nobody waits any more.
fn account(bytes: isize) {
    let used = USED_BYTES.get().wrapping_add(bytes);
    let slot = SLOT.get();
    if bytes > 0 && !slot.is_null() {
        // SAFETY: the worker's own Arc keeps the slot alive until it sets SLOT to NULL.
        let slot = unsafe { &*slot };
        if used > BUDGET_BYTES.get() || slot.given_up.load(Ordering::Relaxed) {
            SLOT.set(ptr::null());
            park(slot, "it needs more memory than such a call may take");
        }
    }
    USED_BYTES.set(used);
}

/// Who had SIGSEGV before.
static PREVIOUS_ACTION: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// SIGSEGV: a worker that overflowed its stack is parked in the handler; any other fault is left to whoever had the signal.
extern "C" fn on_fault(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid information.
    let address = unsafe { (*info).si_addr() } as usize;
    let (slot, end) = (SLOT.get(), STACK_END.get());
    if !slot.is_null() && address.abs_diff(end) < GUARD_BYTES {
        SLOT.set(ptr::null());
        // SAFETY: as in account.
        park(unsafe { &*slot }, "it nests too deeply");
    }
    // SAFETY: the action was the kernel's; the fault repeats under it.
    unsafe { libc::sigaction(libc::SIGSEGV, PREVIOUS_ACTION.load(Ordering::Acquire), ptr::null_mut()) };
}

/// Looks at every call, as a test runner may have taken the signal back since.
fn install_fault_handler() {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _guard = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: plain calls of the C library with valid buffers.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGSEGV, ptr::null(), &mut current);
        let ours = on_fault as *const () as usize;
        if current.sa_sigaction == ours {
            return;
        }
        // The handler may be reading the one before, so it is never freed.
        PREVIOUS_ACTION.store(Box::into_raw(Box::new(current)), Ordering::Release);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
    }
}

/// The lowest address of this thread's stack.
fn stack_end() -> usize {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut size) = (ptr::null_mut(), 0);
    // SAFETY: plain calls of the C library with valid buffers.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) == 0 {
            libc::pthread_attr_getstack(attributes.as_ptr(), &mut low, &mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
    }
    low as usize
}

/// Runs `work` with a signal stack of this thread's own.
fn with_signal_stack<T>(work: impl FnOnce() -> T) -> T {
    let mut memory = vec![0u8; SIGNAL_STACK_BYTES];
    let mut stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory outlives the registration, which ends below.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    let value = work();
    stack.ss_flags = libc::SS_DISABLE;
    // SAFETY: as above.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    value
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
    let slot = Arc::new(Slot { answer: Mutex::new(None), filled: Condvar::new(), given_up: AtomicBool::new(false) });
    let theirs = slot.clone();
    let thread = std::thread::Builder::new()
        .name("text".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            install_fault_handler();
            STACK_END.set(stack_end());
            let answer = with_signal_stack(|| {
                USED_BYTES.set(0);
                BUDGET_BYTES.set(isize::try_from(budget.memory_bytes).unwrap_or(isize::MAX));
                SLOT.set(Arc::as_ptr(&theirs));
                let answer = caught(work).map(|value| Box::new(value) as Box<dyn Any + Send>);
                SLOT.set(ptr::null());
                answer
            });
            theirs.fill(answer);
        })
        .map_err(|error| Failure::new(Status::NoMemory, format!("no thread for it ({error})")))?;

    let deadline = Instant::now() + Duration::from_secs(budget.seconds);
    let mut answer = slot.answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.take() {
            Some(Ok(value)) => {
                drop(answer);
                let _ = thread.join(); // it ends now: what it took is given back before the caller goes on
                return Ok(*value.downcast::<T>().expect("the worker returns what its closure does"));
            }
            Some(Err(failure)) => {
                drop(answer);
                if matches!(failure.status, Status::Full) {
                    abandoned.0.fetch_add(1, Ordering::Relaxed);
                } else {
                    let _ = thread.join();
                }
                return Err(failure);
            }
            None if left.is_zero() => {
                abandoned.0.fetch_add(1, Ordering::Relaxed);
                slot.given_up.store(true, Ordering::Relaxed);
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
