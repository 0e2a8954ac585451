//! The kernel's idle class of I/O: the guest reads and writes when nobody else does.
//!
//! Honoured by the schedulers `bfq` and `mq-deadline`; others treat all alike.
//! Source: Linux, ioprio_set(2). Neither the standard library nor `rustix` has this call.

use std::io;

/// One thread: with 0, the calling one.
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE` in the bits above `IOPRIO_CLASS_SHIFT`.
const IDLE: libc::c_int = 3 << 13;

/// Makes the calling thread's I/O idle, and that of every thread it starts from then on.
///
/// # Errors
/// When the kernel refuses.
#[expect(
    unsafe_code,
    reason = "the system call has no safe wrapper; it takes three integers and touches no memory"
)]
pub fn use_idle_class() -> io::Result<()> {
    // SAFETY: by ioprio_set(2) the call reads no memory of ours; wrong integers are answered with an error.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_takes_it() {
        // On a thread of its own: the class stays with a thread.
        std::thread::spawn(super::use_idle_class).join().unwrap().unwrap();
    }
}
