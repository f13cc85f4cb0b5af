//! Last words: a panic or an error is written into `Status::message` before the guest ends.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicPtr, Ordering};

use toll_guest_abi::{MESSAGE_LENGTH, Status};

use crate::doorbell;

static STATUS: AtomicPtr<Status> = AtomicPtr::new(core::ptr::null_mut());

/// Remembers where last words go.
pub fn attach(status: &'static Status) {
    STATUS.store(core::ptr::from_ref(status).cast_mut(), Ordering::Relaxed);
}

/// The status page, once attached.
pub(crate) fn status() -> Option<&'static Status> {
    // SAFETY: null, or a reference that `attach` was given for good.
    unsafe { STATUS.load(Ordering::Relaxed).as_ref() }
}

/// Leaves last words and ends the guest.
pub fn fail(words: fmt::Arguments<'_>) -> ! {
    if let Some(status) = status() {
        let mut message = Message { status, length: 0 };
        // A message that is too long is cut off: what was written so far stands.
        let _ = message.write_fmt(words);
        status.message_length.store(message.length as u32, Ordering::Release);
    }
    doorbell::end_failed()
}

struct Message {
    status: &'static Status,
    length: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length == MESSAGE_LENGTH {
                return Err(fmt::Error);
            }
            self.status.message[self.length].store(byte, Ordering::Relaxed);
            self.length += 1;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}

/// The prebuilt `core` names it in its unwind tables, which the linker script drops.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As for [`rust_eh_personality`]; never called, since a panic doesn't unwind.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    doorbell::end_failed()
}
